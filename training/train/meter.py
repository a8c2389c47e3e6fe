"""The losses of all processes, step by step: means for the curves, and the watch for a run that goes wrong.

Losses wait where they were computed and are brought together only when a point of the curves, a picture or a
checkpoint is due: a look at each would hold up the device in every step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.settings import TrainingSettings
from training.train.curves import CurvePoint

REMEMBERED, ENOUGH = 100, 20
"""Steps over which the median runs, and fewest of them to judge by."""


class Meter:
    """Losses since the last point, over all processes."""

    def __init__(self, accelerator: Any, settings: TrainingSettings, last_good: Callable[[], str]) -> None:
        self._accelerator, self._settings, self._last_good = accelerator, settings, last_good
        self._since, self._steps = time.perf_counter(), 0
        self._waiting: list[tuple[int, dict[str, Tensor]]] = []
        self._window: list[dict[str, float]] = []
        self._flows: list[float] = []

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take in one process's losses of ``step``, counted from 0; the same names on every process."""
        self._waiting.append((step, {name: loss.detach() for name, loss in losses.items()}))
        self._steps += 1

    def settle(self) -> None:
        """Bring the waiting losses together. All processes must call it.

        Raises:
            TrainingError: a loss is not finite, or the velocity loss has run away.
        """
        flat = [loss.float() for _, losses in self._waiting for loss in losses.values()]
        if not flat:
            return
        means = iter(self._accelerator.reduce(torch.stack(flat), "mean").tolist())
        for step, losses in self._waiting:
            row = {name: next(means) for name in losses}
            self._judge(step, row)
            self._window.append(row)
        self._waiting = []

    def _judge(self, step: int, row: dict[str, float]) -> None:
        place = f"at step {step + 1} of {self._settings.steps}; nothing is exported, {self._last_good()}"
        for name, loss in row.items():
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{name} is {loss} {place}: lower learning_rate or raise warmup_steps, and check the "
                    "features for values that are not finite"
                )
        flow, factor = row["loss_flow"], self._settings.divergence_factor
        if len(self._flows) >= ENOUGH and flow > factor * (usual := statistics.median(self._flows)):
            raise TrainingError(
                f"training diverges: the velocity loss is {flow:.4g}, more than {factor:g} times its running median "
                f"{usual:.4g}, {place}: lower learning_rate, or raise divergence_factor if such steps are usual here"
            )
        self._flows = [*self._flows[1 - REMEMBERED :], flow]

    def point(self, step: int, **figures: Any) -> CurvePoint:
        """The point after ``step``, and begin the next one. All processes must call it."""
        self.settle()
        names = {name for row in self._window for name in row}
        means = {name: statistics.fmean(row[name] for row in self._window if name in row) for name in names}
        now = time.perf_counter()
        rate = self._steps * self._settings.batch_size / (now - self._since)
        self._since, self._steps, self._window = now, 0, []
        return CurvePoint(step=step + 1, samples_per_second=rate, **means, **figures)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, after `settle`."""
        return {"window": self._window, "flows": self._flows}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        self._window, self._flows = state["window"], state["flows"]
