"""The features folder: what is computed once from data and frozen models, and read in every training step.

    features.json                  what it was made of, and the digests of the rest
    corpus.json                    distinct captions, the one of dropped captions first; which of them are replayed; the
                                   strings that the teacher reads, and which of them each caption consists of; for each
                                   sample its caption and the key of its rows; where its picture lies, if pictures are
                                   read while training
    latents/                       mean, std (C, h, w) of the VAE posterior, scaled as the MM-DiT sees latents
    text/                          of each distinct caption: embeddings (L, D), pooled (P,), mask (L,), as far as the
                                   family has them
    teacher/                       patches V (T_v, d) fp16, and their sum
    strings/                       the teacher's embedding of each string, features (d,)
    structure/                     similarities G(F_m) above the diagonal (layers, pairs) fp16

Rows are kept as `training.encode.store` says, and memory-mapped. They are not hashed here: `features_digest` does so
once for all processes of a machine. A part that is not cached is computed by the same frozen models in the training
step. Nothing here is pickled.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from training.encode.encoders import BATCH, Encoders, Tensors, fitted, joined
from training.encode.info import CORPUS, keys_of, read_info
from training.encode.pictures import open_picture
from training.encode.store import Rows
from training.errors import TrainingError
from training.settings import Part, TrainingSettings
from training.teach.phrases import Phrasebook
from training.teach.targets import Target, Targets


class Features:
    """A features folder, memory-mapped: only the rows that are read take memory."""

    def __init__(self, folder: Path, settings: TrainingSettings) -> None:
        self.folder, self.settings = folder, settings
        self.info = read_info(folder)
        self.encoders = Encoders(settings)
        listed = json.loads((folder / CORPUS).read_text("utf-8"))
        self._captions: list[str] = listed["captions"]
        self._book = Phrasebook(listed["strings"], listed["parts"])
        self._rows: list[int] = listed["rows"]
        self._replayed: list[int] = listed["replayed"]
        self._pictures: list[dict[str, str]] = listed.get("pictures", [])
        self._part = cache(lambda part: Rows(folder / part, keys_of(listed, part)))
        self._opened: tuple[list[int], list[Image.Image]] = ([], [])
        self._sizes = list(accumulate(count for count, _, _ in self.info.sizes))

    def __len__(self) -> int:
        return self.info.images

    @cached_property
    def teacher_width(self) -> int:
        """d, the size of the teacher's features; 0 without a teacher."""
        return int(self._part("strings")[0]["features"].shape[-1]) if self._book.strings else 0

    @cached_property
    def teacher_grid(self) -> tuple[int, int]:
        """Rows and columns of the teacher's patches; (1, 1) without a teacher."""
        if not self._book.strings:
            return 1, 1
        side = round(self._patches([0]).shape[1] ** 0.5)
        return side, side

    @cached_property
    def targets(self) -> Targets | None:
        """What makes the supervision targets; None without supervision."""
        if not self.settings.supervision.enabled:
            return None
        if self.info.temperature is None:
            raise TrainingError(f"{self.folder} has no teacher features; encode it with supervision enabled")
        return Targets(
            self.settings.supervision,
            rows=self._rows,
            book=self._book,
            string_features=self._part("strings").whole("features"),
            temperature=self.info.temperature,
            seed=self.settings.seed,
        )

    def target(self, samples: Sequence[int]) -> Target | None:
        """What the image streams of ``samples`` are pulled towards; None without supervision."""
        return self.targets.of(samples, self._patches(samples)) if self.targets else None

    def latents(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of samples of one size: two (B, C, h, w) fp32."""
        made = self._read("latents", samples)
        return made["mean"].float(), made["std"].float()

    def conditioning(self, samples: Sequence[int], dropped: Sequence[bool]) -> dict[str, Tensor]:
        """``embeddings``, ``pooled`` and ``mask`` of the samples' captions, where ``dropped`` of the empty one: as
        far as the family has them, each (B, ...), floats in fp32."""
        return self._read_text([0 if drop else self._rows[s] for s, drop in zip(samples, dropped, strict=True)])

    @property
    def replayed(self) -> int:
        """How many captions there are to replay."""
        return len(self._replayed)

    def replayed_conditioning(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """As `conditioning`, of replayed captions by their numbers."""
        return self._read_text([self._replayed[number] for number in numbers])

    def _read_text(self, captions: Sequence[int]) -> dict[str, Tensor]:
        if "text" in self.info.cached:
            part = self._part("text")
            made = joined([{name: t[None] for name, t in part[caption].items()} for caption in captions])
        else:
            made = self.encoders.encode("text", [self._captions[caption] for caption in captions])
        made.pop("truncated")
        return {name: t.float() if t.is_floating_point() else t for name, t in made.items()}

    def structure(self, samples: Sequence[int]) -> Tensor | None:
        """G(F_m) above the diagonal, (B, layers, pairs) fp16; None without L_structure."""
        return self._read("structure", samples)["similarities"] if self.settings.supervision.structured else None

    def _patches(self, samples: Sequence[int]) -> Tensor:
        return self._read("teacher", samples)["patches"]

    def _read(self, part: Part, samples: Sequence[int]) -> Tensors:
        """A part of pictures, as it was cached, or made now."""
        if part not in self.info.cached:
            return self.encoders.encode(part, self._images(samples))
        rows = self._part(part)
        return {name: rows.gather(name, samples) for name in rows[samples[0]]}

    def _images(self, samples: Sequence[int]) -> list[Image.Image]:
        """The pictures of ``samples``, read once for all parts of a batch."""
        if self._opened[0] != list(samples):
            found = []
            for sample in samples:
                _, width, height = self.info.sizes[bisect_right(self._sizes, sample)]
                found.append(fitted(open_picture(self._pictures[sample]), (width, height)))
            self._opened = list(samples), found
        return self._opened[1]

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
        return int(self._part("text").whole("truncated").sum()) if "text" in self.info.rows else None
