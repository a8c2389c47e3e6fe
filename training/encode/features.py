"""The features folder: what is computed once from data and frozen models, and read in every training step.

    features.json                  what it was made from, and the digest of every other file
    corpus.json                    distinct captions, the empty one first; the strings that the teacher read; for each
                                   sample its caption; where its picture lies, if pictures are read while training
    latents-00000.safetensors      mean, std (N, C, h, w) of the VAE posterior, scaled as the MM-DiT sees latents
    text-00000.safetensors         of distinct captions: embeddings (N, L, D), pooled (N, P), mask (N, L), as far as
                                   the family has them
    teacher-00000.safetensors      patches V (N, T_v, d) fp16, and their sum over pictures
    strings-00000.safetensors      the teacher's embeddings of strings, features (N, d)
    structure-00000.safetensors    similarities G(F_m) above the diagonal (N, layers, pairs) fp16

Shards are memory-mapped, and checked against their digest when they are first read. A part that is not cached is
computed by the same frozen models in the training step. Equal inputs give equal bytes. Nothing here is pickled.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lineage.digests import digest_file
from training.encode.features_info import Shard, read_info
from training.encode.frozen import BATCH, Frozen, fitted, join_conditioning
from training.encode.pictures import open_picture
from training.errors import TrainingError
from training.settings import Part, TrainingSettings
from training.teach.phrases import Phrasebook
from training.teach.targets import Target, Targets

CORPUS = "corpus.json"


@dataclass(frozen=True)
class FeatureBatch:
    """Features of B samples of one size."""

    mean: Tensor
    """(B, C, h, w) fp32."""
    std: Tensor
    """(B, C, h, w) fp32."""
    conditioning: dict[str, Tensor]
    """By names of `training.families.family.CONDITIONING`, each (B, ...); floats in fp32."""
    target: Target | None
    """None without supervision."""
    structure: Tensor | None
    """G(F_m) above the diagonal, (B, layers, pairs) fp16; None without L_structure."""


class Shards:
    """The rows of one part, over all its files."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder, self._shards = folder, shards
        self._ends = list(accumulate(shard.rows for shard in shards))
        self._open: dict[int, dict[str, Tensor]] = {}

    def gather(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of tensor ``name``: (rows, ...)."""
        return torch.stack([tensors[name][place] for tensors, place in map(self._find, rows)])

    def row(self, row: int) -> dict[str, Tensor]:
        """Every tensor of one row: (1, ...) each."""
        tensors, place = self._find(row)
        return {name: tensor[place : place + 1] for name, tensor in tensors.items()}

    def whole(self, name: str) -> Tensor:
        """All rows of tensor ``name``."""
        return torch.cat([self._shard(place)[name] for place in range(len(self._shards))])

    def _find(self, row: int) -> tuple[dict[str, Tensor], int]:
        """The shard that holds ``row``, and the row's place in it."""
        number = bisect_right(self._ends, row)
        return self._shard(number), row - self._ends[number] + self._shards[number].rows

    def _shard(self, place: int) -> dict[str, Tensor]:
        if place not in self._open:
            shard = self._shards[place]
            path = self._folder / shard.name
            if not path.is_file() or digest_file(path) != shard.digest:
                raise TrainingError(
                    f"{path} is not what was encoded: its digest is not {shard.digest}; encode the features again"
                )
            self._open[place] = load_file(path)
        return self._open[place]


class Features:
    """A features folder, memory-mapped: only the rows that are read take memory."""

    def __init__(self, folder: Path, settings: TrainingSettings) -> None:
        self.folder, self.settings = folder, settings
        self.info = read_info(folder)
        self.frozen = Frozen(settings)
        corpus = folder / CORPUS
        if not corpus.is_file() or digest_file(corpus) != self.info.corpus:
            raise TrainingError(f"{corpus} is not what was encoded; encode the features again")
        listed = json.loads(corpus.read_text("utf-8"))
        self._captions: list[str] = listed["captions"]
        self._strings: list[str] = listed["strings"]
        self._rows: list[int] = listed["rows"]
        self._pictures: list[dict[str, str]] = listed.get("pictures", [])
        self._parts = {name: Shards(folder, shards) for name, shards in self.info.parts.items()}
        self._read: tuple[list[int], list[Image.Image]] = ([], [])
        self._sizes = list(accumulate(count for count, _, _ in self.info.sizes))

    def __len__(self) -> int:
        return self.info.images

    @cached_property
    def teacher_width(self) -> int:
        """d, the size of the teacher's features; 0 without a teacher."""
        return int(self._parts["strings"].gather("features", [0]).shape[-1]) if self._strings else 0

    @cached_property
    def teacher_grid(self) -> tuple[int, int]:
        """Rows and columns of the teacher's patches; (1, 1) without a teacher."""
        if not self._strings:
            return 1, 1
        side = round(self._patches([0]).shape[1] ** 0.5)
        return side, side

    @cached_property
    def targets(self) -> Targets | None:
        """What makes the supervision targets; None without supervision."""
        if not self.settings.supervision.enabled:
            return None
        if not self._strings:
            raise TrainingError(f"{self.folder} has no teacher features; encode it with supervision enabled")
        patches = len(self) * self.teacher_grid[0] * self.teacher_grid[1]
        return Targets(
            self.settings.supervision,
            captions=self._captions,
            rows=self._rows,
            book=Phrasebook(self._strings),
            spoken=self._parts["strings"].whole("features"),
            patch_mean=(self._parts["teacher"].whole("sum").sum(dim=0) / patches).float(),
            temperature=self.info.temperature or self.frozen.teacher.temperature,
            seed=self.settings.seed,
        )

    def batch(self, samples: Sequence[int], dropped: Sequence[bool]) -> FeatureBatch:
        """The features of ``samples``, all of one size; where ``dropped``, conditioning is the empty caption's."""
        shown = [0 if drop else self._rows[sample] for sample, drop in zip(samples, dropped, strict=True)]
        mean, std = self.latents(samples)
        return FeatureBatch(
            mean=mean,
            std=std,
            conditioning=self._text(shown),
            target=self.targets.of(samples, self._patches(samples)) if self.targets else None,
            structure=self._structure(samples) if self.settings.supervision.structured else None,
        )

    def latents(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior: two (B, C, h, w) fp32."""
        if self._cached("latents"):
            part = self._parts["latents"]
            return part.gather("mean", samples).float(), part.gather("std", samples).float()
        made = self.frozen.latents(self._images(samples))
        return made["mean"].float(), made["std"].float()

    def _text(self, captions: Sequence[int]) -> dict[str, Tensor]:
        if self._cached("text"):
            part = self._parts["text"]
            made = join_conditioning([part.row(caption) for caption in captions])
        else:
            made = join_conditioning([self.frozen.text([self._captions[caption] for caption in captions])])
        return {name: t.float() if t.is_floating_point() else t for name, t in made.items()}

    def _patches(self, samples: Sequence[int]) -> Tensor:
        if self._cached("teacher"):
            return self._parts["teacher"].gather("patches", samples)
        return self.frozen.teacher_patches(self._images(samples))["patches"]

    def _structure(self, samples: Sequence[int]) -> Tensor:
        if self._cached("structure"):
            return self._parts["structure"].gather("similarities", samples)
        return self.frozen.structure(self._images(samples))["similarities"]

    def _cached(self, part: Part) -> bool:
        return part in self.info.cached

    def _images(self, samples: Sequence[int]) -> list[Image.Image]:
        """The pictures of ``samples``, read once for all parts of a batch."""
        if self._read[0] != list(samples):
            found = []
            for sample in samples:
                _, width, height = self.info.sizes[bisect_right(self._sizes, sample)]
                found.append(fitted(open_picture(self._pictures[sample]), (width, height)))
            self._read = list(samples), found
        return self._read[1]

    def alignment(self, most: int) -> dict[str, float]:
        """Means over the first ``most`` samples of what `Target` says about the alignment; empty without a teacher."""
        if self.targets is None:
            return {}
        sums = torch.zeros(3, dtype=torch.float64)
        count = min(most, len(self))
        for start in range(0, count, BATCH):
            samples = range(start, min(start + BATCH, count))
            target = self.targets.of(samples, self._patches(samples))
            sums += torch.stack([t.double().sum() for t in (target.entropy, target.variance, target.null_share)])
        names = ("assignment_entropy_nats", "target_variance", "null_share")
        return dict(zip(names, (sums / count).tolist(), strict=True))

    def truncated_captions(self) -> int | None:
        """Captions that the text encoders cut; None where text is not cached."""
        return int(self._parts["text"].whole("truncated").sum()) if "text" in self._parts else None
