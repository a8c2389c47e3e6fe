"""The training loop, as each process runs it: accelerate with DeepSpeed around one readable function."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.curves import CurvePoint
from training.errors import TrainingError
from training.export import export_candidate
from training.families import family_of
from training.features import Features
from training.model import BACKBONE, Batches, Losses, SupervisedTransformer, move, parameter_groups
from training.settings import TrainingSettings
from training.shadow import ShadowWeights
from training.supervision import Phase, schedule


@dataclass(frozen=True)
class LoopResult:
    """What the processes measured together."""

    last: CurvePoint
    seconds: dict[str, float]
    """Wall time of loading, training and export, and the main process's CPU time of training: where that is much
    shorter, the process waited, for others or for a core."""
    peak_memory_bytes: list[int]
    """Largest resident memory of each process."""
    threads: int
    """CPU threads that each process used."""


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of ``step``, counted from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    settings: TrainingSettings, features_dir: Path, candidate: Path, report: Callable[[CurvePoint], None]
) -> LoopResult | None:
    """Train, and export the averaged weights to ``candidate``; the main process gives the result, others None.

    Raises:
        TrainingError: the loss is not finite, the features or the base model do not fit.
    """
    began = time.perf_counter()
    accelerator = _accelerator()
    features = Features(features_dir, settings)
    batches, engine, zero = _prepare(settings, features, accelerator)
    shadow = ShadowWeights(zero, settings.ema_decay)
    meter = Meter(accelerator, settings)
    trained_from, worked_from = time.perf_counter(), time.process_time()
    for step in range(settings.steps):
        phase = schedule(settings.supervision, step, settings.steps)
        for group in zero.param_groups:
            group["lr"] = learning_rate(settings, step)
        losses: Losses = engine(move(batches[step], accelerator.device), phase)
        meter.add(step, losses)
        accelerator.backward(losses.total)
        if engine.was_step_applied():
            shadow.update()
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            report(meter.point(step, phase, engine.get_global_grad_norm()))
    trained_to, worked_to = time.perf_counter(), time.process_time()
    weights = shadow.gather(engine.module, BACKBONE)
    memory = accelerator.gather(torch.tensor([_peak_memory()], device=accelerator.device))
    if not accelerator.is_main_process:
        return None
    export_candidate(settings.base_model, weights, candidate, settings.adapter)
    seconds = {
        "loading": trained_from - began,
        "training": trained_to - trained_from,
        "training_cpu": worked_to - worked_from,
        "export": time.perf_counter() - trained_to,
    }
    return LoopResult(meter.last, seconds, [int(m) for m in memory.tolist()], torch.get_num_threads())


def _accelerator() -> Any:
    """An Accelerator under DeepSpeed; on a CPU over gloo.

    Without the explicit backend accelerate counts one process per rank there, and ``cpu=True`` would silently
    turn DeepSpeed off.
    """
    import deepspeed.ops
    from accelerate import Accelerator, InitProcessGroupKwargs

    on_cpu = not torch.cuda.is_available()
    # DeepSpeed would first compile, for a minute or more and with a C++ compiler that images then need, an
    # operator that only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu else [])
    if accelerator.state.deepspeed_plugin is None:
        raise TrainingError("DeepSpeed is not on; start training through training.launch, not by itself")
    if on_cpu:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return accelerator


def _prepare(settings: TrainingSettings, features: Features, accelerator: Any) -> tuple[Batches, Any, Any]:
    """Batches, DeepSpeed engine and ZeRO optimizer."""
    family = family_of(settings.base_model)
    batches = Batches(
        features=features,
        settings=settings,
        family=family,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    model = SupervisedTransformer(family, features, settings)
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    engine, _ = accelerator.prepare(model, optimizer)
    return batches, engine, engine.optimizer


class Meter:
    """Means of the losses between two points of the curves, over all processes."""

    def __init__(self, accelerator: Any, settings: TrainingSettings) -> None:
        self._accelerator = accelerator
        self._settings = settings
        self._since = time.perf_counter()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.last: CurvePoint

    def add(self, step: int, losses: Losses) -> None:
        """Take in the losses of ``step``, counted from 0.

        Raises:
            TrainingError: the loss is not finite.
        """
        for name, loss in vars(losses).items():
            if loss is None:
                continue
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} loss is {value} at step {step + 1} of {self._settings.steps}; nothing is exported: "
                    "lower learning_rate or raise warmup_steps, and check the features for values that are not finite"
                )
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def point(self, step: int, phase: Phase, gradient_norm: Tensor | float) -> CurvePoint:
        """The point after ``step``, and begin the next one. All processes must call it."""
        names = sorted(self._sums)
        local = torch.tensor([self._sums[n] / self._counts[n] for n in names], dtype=torch.float32)
        means = self._accelerator.reduce(local.to(self._accelerator.device), "mean").tolist()
        losses = dict(zip(names, means, strict=True))
        now = time.perf_counter()
        samples = self._counts["total"] * self._settings.batch_size
        self.last = CurvePoint(
            step=step + 1,
            loss=losses["total"],
            loss_flow=losses["flow"],
            loss_local=losses.get("local"),
            loss_global=losses.get("caption"),
            loss_structure=losses.get("structure"),
            target_entropy=losses.get("entropy"),
            target_variance=losses.get("variance"),
            supervision_weight=phase.weight,
            learning_rate=learning_rate(self._settings, step),
            gradient_norm=float(gradient_norm),
            samples_per_second=samples / (now - self._since),
        )
        self._since, self._sums, self._counts = now, {}, {}
        return self.last


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
