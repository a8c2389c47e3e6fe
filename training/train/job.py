"""The job folder: what the launcher tells the training processes, and what they tell it.

    job.json         the launcher's: what to train, from what, to where
    result.json      the main process's, when all is done
    error-0.json     a process's, when it ends early: kind, message, traceback

Points of the loss curves and pictures are announced on standard output, one line each, behind `POINT` and `PICTURE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineage.digests import digest_file
from lineage.frozen import Frozen
from training.settings import TrainingSettings
from training.train.curves import CurvePoint

POINT, PICTURE = "@point ", "@picture "
JOB, RESULT = "job.json", "result.json"
MARKS = "marks"
"""The folder of the weights to choose among."""
CODE = ("training.settings", *(f"training.{room}" for room in ("families", "teach", "encode", "train")))
"""Whose sources decide the weights that a run gives."""


def pictures_beside(curves: Path) -> Path:
    """The folder of the pictures that a run draws, beside its ``curves``."""
    return curves.with_name(f"{curves.stem}-samples")


def mark_name(step: int) -> str:
    """The file, in the folder of marks, of the weights after ``step``."""
    return f"step-{step:08d}.safetensors"


def marks_folder(checkpoints: Path | None, candidate: Path) -> Path:
    """Where a run's marks lie: with its checkpoints, or beside its candidate where there are none."""
    return (checkpoints or candidate.parent) / MARKS


def marks_in(folder: Path, settings: TrainingSettings) -> dict[str, str]:
    """File -> digest of a run's marks."""
    return {path.name: digest_file(path) for step in settings.marked if (path := folder / mark_name(step)).is_file()}


class RunIdentity(Frozen):
    """What decides the weights that a run gives: a checkpoint fits only the same run."""

    processes: int
    settings: dict[str, Any]
    """`TrainingSettings.teaching`."""
    features: str
    """`training.encode.info.features_digest`."""
    base_model: str
    """Digest of the base model's folder."""
    code: str
    """Digest of the sources of `CODE`."""
    packages: str
    """Digest of the names and versions of everything installed."""


class TrainingJob(Frozen):
    """``job.json``."""

    settings: TrainingSettings
    features: Path
    candidate: Path
    curves: Path
    """JSON lines, one point each."""
    identity: RunIdentity
    checkpoints: Path | None
    """Where checkpoints are kept; None: nowhere."""

    @property
    def marks(self) -> Path:
        """The folder of its marks."""
        return marks_folder(self.checkpoints, self.candidate)

    def report(self, point: CurvePoint) -> None:
        """Keep a point of the curves and announce it."""
        line = point.model_dump_json()
        with self.curves.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(POINT + line, flush=True)


class TrainingResult(Frozen):
    """``result.json``: what the processes measured together."""

    final: CurvePoint
    """Last point of the loss curves."""
    seconds: dict[str, float]
    """Of this call alone: wall time of loading, training and export, in a record also of all of it with starting the
    processes; and the main process's CPU time of training: where that is much shorter, it waited."""
    peak_memory_bytes: list[int]
    """Largest resident memory of each process."""
    threads_per_process: int
    """CPU threads that each process used."""
    device: str
    """What it was computed on."""
    resumed_from: int
    """Optimizer steps taken over from a checkpoint of a call before this one."""
