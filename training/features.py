"""The features folder: what is computed once from data and frozen models, and read in every training step.

    features.json                what it was made from, sizes, how decided the alignment is
    captions.safetensors         one row for each distinct caption; row 0 is the empty caption
        embeddings (U, L, D)     text tokens               pooled (U, P), mask (U, L)    where the family has them
        teacher (U, d)           z_g, only with a teacher
    latents-00000.safetensors    a shard of pictures
        mean, std (N, C, h, w)   of the VAE posterior, scaled as the MM-DiT sees latents
        caption (N,)             row in captions.safetensors
    targets-00000.safetensors    the same pictures: target (N, T_v, d) fp16, only with a teacher

Equal inputs give equal bytes. Nothing here is pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.errors import TrainingError
from training.families.family import CONDITIONING
from training.features_info import INFO, read_info

CAPTIONS = "captions.safetensors"


@dataclass(frozen=True)
class FeatureBatch:
    """Cached features of B samples."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor
    """(B, C, h, w)."""
    conditioning: dict[str, Tensor]
    """By names of `training.families.family.CONDITIONING`, each (B, ...)."""
    target: Tensor | None
    """C: (B, T_v, d) fp16."""
    caption_target: Tensor | None
    """z_g: (B, d)."""


class Features:
    """A features folder, memory-mapped: only the rows that are read take memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self._captions = load_file(folder / CAPTIONS)
        shards = range(-(-self.info.images // self.info.shard_rows))
        self._latents = [load_file(folder / latents_name(shard)) for shard in shards]
        self._targets = [load_file(folder / targets_name(shard)) for shard in shards] if self.info.teacher else []
        rows = sum(len(shard["caption"]) for shard in self._latents)
        if rows != self.info.images:
            raise TrainingError(f"{folder} has {rows} pictures but {INFO} says {self.info.images}; encode them again")

    def __len__(self) -> int:
        return self.info.images

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return tuple(self._latents[0]["mean"].shape[1:])

    @property
    def teacher_width(self) -> int:
        """d, the size of the teacher's features; 0 without a teacher."""
        return int(self._captions["teacher"].shape[-1]) if "teacher" in self._captions else 0

    def batch(self, samples: Sequence[int], dropped: Sequence[bool]) -> FeatureBatch:
        """The features of ``samples``; where ``dropped``, the conditioning is the empty caption's."""
        size = self.info.shard_rows
        places = [divmod(sample, size) for sample in samples]
        latents = [(self._latents[shard], row) for shard, row in places]
        own = torch.stack([shard["caption"][row] for shard, row in latents])
        shown = torch.where(torch.tensor(dropped), torch.zeros_like(own), own)
        supervised = bool(self._targets)
        return FeatureBatch(
            mean=torch.stack([shard["mean"][row] for shard, row in latents]),
            std=torch.stack([shard["std"][row] for shard, row in latents]),
            conditioning={name: self._captions[name][shown] for name in CONDITIONING if name in self._captions},
            target=torch.stack([self._targets[s]["target"][r] for s, r in places]) if supervised else None,
            caption_target=self._captions["teacher"][own] if supervised else None,
        )


def latents_name(shard: int) -> str:
    """File name of a shard of latents."""
    return f"latents-{shard:05d}.safetensors"


def targets_name(shard: int) -> str:
    """File name of a shard of supervision targets."""
    return f"targets-{shard:05d}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors`` as safetensors, with equal bytes for equal tensors."""
    save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path)
