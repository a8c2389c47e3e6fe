"""Marks: the averaged weights after some of a run's steps, kept so that one of them can be chosen afterwards.

    <folder>/step-00000120.safetensors    what is trained, in fp32, by the names of the backbone's parameters

They lie with the run's checkpoints, or beside its candidate where there are none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lineage.digests import digest_file
from training.encode.store import written_whole
from training.errors import TrainingError
from training.train.job import MARKS, mark_name

BESIDE = f"../{MARKS}/"
"""How a checkpoint names the folder of its run's marks."""


def write_mark(folder: Path, step: int, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Write the mark of ``step``, whole or not at all; gives its name, as a checkpoint knows it, and its digest.

    Raises:
        TrainingError: there is no room, or it cannot be written for another reason.
    """
    path = folder / mark_name(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(dict(weights), partial)
        to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the weights of step {step} cannot be kept at {path}: {error}; make room there, or lower selection.marks, "
            "and run again"
        ) from error
    return {BESIDE + path.name: digest_file(path)}


def to_disk(path: Path) -> None:
    """Have a file or a folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
