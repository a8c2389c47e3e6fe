"""The job folder: what the launcher tells the training processes, and what they tell it.

    job.json         the launcher's: what to train, from what, to where
    result.json      the main process's, when all is done
    error-0.json     a process's, when it ends early: kind, message, traceback

Points of the loss curves and pictures are announced on standard output, one line each, behind `POINT` and `PICTURE`.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from training.settings import TrainingSettings
from training.train import checkpoints
from training.train.checkpoints import RunIdentity
from training.train.curves import CurvePoint

POINT, PICTURE = "@point ", "@picture "
JOB, RESULT = "job.json", "result.json"


def pictures_beside(curves: Path) -> Path:
    """The folder of the pictures that a run draws, beside its ``curves``."""
    return curves.with_name(f"{curves.stem}-samples")


class Job(BaseModel):
    """``job.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: TrainingSettings
    features: Path
    candidate: Path
    curves: Path
    """JSON lines, one point each."""
    identity: RunIdentity
    checkpoints: Path | None
    """Where checkpoints are kept; None: nowhere."""

    @property
    def samples(self) -> Path:
        """Where pictures go."""
        return pictures_beside(self.curves)

    def report(self, point: CurvePoint) -> None:
        """Keep a point of the curves and announce it."""
        if os.environ.get("RANK", "0") == "0":
            line = point.model_dump_json()
            with self.curves.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            print(POINT + line, flush=True)

    def announce_picture(self, path: Path) -> None:
        """Say that a picture lies at ``path``."""
        print(f"{PICTURE}{path}", flush=True)

    def last_good(self) -> str:
        """The newest checkpoint, in words."""
        return checkpoints.newest(self.checkpoints)
