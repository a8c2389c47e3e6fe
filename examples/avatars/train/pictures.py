"""Drawn splits as tensors, kept between runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from examples.avatars.portraits import Portrait
from examples.avatars.splits import portraits


def pictures(split: str, work: Path, count: int | None = None) -> tuple[torch.Tensor, list[Portrait]]:
    """Pictures of a split, (N, 3, 64, 64) uint8, and their portraits; drawn once into `work`."""
    wanted = portraits(split, count)
    place = work / f"pictures-{split}-{len(wanted)}.safetensors"
    if not place.exists():
        work.mkdir(parents=True, exist_ok=True)
        drawn = np.stack([np.asarray(portrait.draw()) for portrait in wanted])
        partial = place.with_suffix(".partial")
        save_file({"pictures": torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()}, partial)
        partial.rename(place)
    return load_file(place)["pictures"], wanted


def classes(wanted: list[Portrait]) -> torch.Tensor:
    """Class indices, (N, 8) int64, in the order of `portraits.VALUES`."""
    return torch.tensor([portrait.classes() for portrait in wanted])


def scaled(batch: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return batch.float() / 127.5 - 1
