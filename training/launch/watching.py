"""What a person sees while training runs, in the terminal and in MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineage.progress import report
from training.settings import TrainingSettings
from training.train.curves import CurvePoint

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds between two tries to reach an MLflow that is away."""


@dataclass(frozen=True)
class MlflowRun:
    """An MLflow run that takes the loss curves."""

    tracking_uri: str
    run_id: str


def show(point: CurvePoint, settings: TrainingSettings) -> None:
    """Print a point of the loss curves as progress, with the time left at the speed of its steps."""
    elapsed = point.step * settings.batch_size / point.samples_per_second
    figures = f"loss {point.loss:.4f}, velocity {point.loss_flow:.4f}"
    if point.loss_local is not None:
        figures += f", patches {point.loss_local:.3f}"
    if point.loss_replay is not None:
        figures += f", replay {point.loss_replay:.4f}"
    if point.gradient_cosine is not None:
        figures += f", pulls at cosine {point.gradient_cosine:.2f}"
    report("fine-tuning", point.step, settings.steps, elapsed, f"{figures}, {point.samples_per_second:.1f} images/s")


class MlflowCurves:
    """Sends points and pictures to an MLflow run. A server that is away is tried again with what comes later, ever
    less often: it costs the live curves for a while, not the training, and no point as long as it comes back."""

    def __init__(self, run: MlflowRun | None) -> None:
        self._run_id = run.run_id if run else ""
        self._client: Any = None
        self._waiting: list[Callable[[], None]] = []
        self._pause, self._silent_until = FIRST_PAUSE, 0.0
        self.error: str | None = None
        """Why MLflow lacks something now; None: it has all."""
        if run:
            from mlflow import MlflowClient

            self._client = MlflowClient(run.tracking_uri)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log numbers after ``step`` under ``training/``."""
        if self._client is not None and figures:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            metrics = [Metric(f"training/{name}", value, now, step) for name, value in figures.items()]
            self._send(lambda: self._client.log_batch(self._run_id, metrics=metrics))

    def picture(self, path: Path) -> None:
        """Keep a picture with the run's artifacts, under ``samples``."""
        self._send(lambda: self._client.log_artifact(self._run_id, str(path), "samples"))

    def close(self) -> None:
        """Try once more to send what waits."""
        self._silent_until = 0.0
        self._flush()

    def _send(self, call: Callable[[], None]) -> None:
        if self._client is not None:
            self._waiting.append(call)
            self._flush()

    def _flush(self) -> None:
        if not self._waiting or time.monotonic() < self._silent_until:
            return
        from mlflow.exceptions import MlflowException

        try:
            while self._waiting:
                self._waiting[0]()
                self._waiting.pop(0)
            self._pause, self.error = FIRST_PAUSE, None
        except (MlflowException, OSError) as error:
            self.error = f"{type(error).__name__}: {error}"
            self._silent_until, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
            print(f"MLflow cannot be reached now, training goes on: {self.error}", file=sys.stderr)
