"""The training loop, as each process runs it: accelerate with DeepSpeed around one readable function."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.settings import TrainingSettings
from training.teach.probe import agreement
from training.teach.supervision import Phase, schedule
from training.train.curves import CurvePoint
from training.train.export import export_candidate
from training.train.job import Job
from training.train.masters import Shards
from training.train.meter import Meter
from training.train.model import (
    BACKBONE,
    Batch,
    Batches,
    SupervisedTransformer,
    compile_blocks,
    move,
    parameter_groups,
    parts,
)
from training.train.saving import Saving
from training.train.stopping import StopRequest

MOST_SKIPPED = 40
"""Optimizer steps in a row that may be left out because gradients were not finite: fp16 finds its loss scale so."""
LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for one that reads checkpoints or draws pictures."""


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
    device: str
    """What it was computed on."""
    resumed_from: int
    """Optimizer steps that were done already when this call took the run up."""


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of ``step``, counted from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(job: Job) -> LoopResult | None:
    """Train, and export the averaged weights to the candidate; the main process gives the result, others None.

    Raises:
        TrainingError: the features or the base model do not fit, the loss is not finite or runs away, or a checkpoint
            cannot be written or is not of this run.
        Stopped: a process was asked to end; a checkpoint of the last finished step is there.
    """
    began = time.perf_counter()
    settings = job.settings
    accelerator = _accelerator()
    batches, engine = _prepare(job, accelerator)
    trainer = Trainer(job, accelerator, engine)
    first = trainer.saving.resume()
    trained_from, worked_from = time.perf_counter(), time.process_time()
    for step, batch in _ahead(batches, first, settings.steps, accelerator.device):
        phase = schedule(settings.supervision, step, settings.steps)
        trainer.step(step, batch, phase)
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            job.report(trainer.point(step, phase))
        trainer.saving.after(step + 1)
    trained_to, worked_to = time.perf_counter(), time.process_time()
    weights = trainer.shards.gather(engine.module, BACKBONE, accelerator.is_main_process)
    memory = accelerator.gather(torch.tensor([_peak_memory()], device=accelerator.device))
    accelerator.end_training()  # nothing is exchanged any more: a group taken down late can abort its process
    if not accelerator.is_main_process:
        return None
    export_candidate(settings.base_model, weights, job.candidate, settings.adapter)
    seconds = {
        "loading": trained_from - began,
        "training": trained_to - trained_from,
        "training_cpu": worked_to - worked_from,
        "export": time.perf_counter() - trained_to,
    }
    peaks = [int(m) for m in memory.tolist()]
    return LoopResult(trainer.last, seconds, peaks, torch.get_num_threads(), _device(), first)


class Trainer:
    """One optimizer step, and what is known about it."""

    def __init__(self, job: Job, accelerator: Any, engine: Any) -> None:
        self._settings, self._accelerator, self._engine = job.settings, accelerator, engine
        self._stage = job.settings.stage
        self._norm = torch.tensor(torch.nan)
        self._skipped = 0
        self.shards = Shards(engine, self._stage, job.settings.ema_decay)
        self._last_good = job.last_good
        self.meter = Meter(accelerator, job.settings, job.last_good)
        stop = StopRequest(accelerator) if job.checkpoints else None
        self.saving = Saving(job, accelerator, engine.module, self.shards, self.meter, stop)
        self.last: CurvePoint

    def step(self, step: int, batch: Batch, phase: Phase) -> None:
        """Do the optimizer step ``step``, counted from 0."""
        settings, engine = self._settings, self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        engine.module.probe.listening = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
        self.shards.forget_gradients()
        sums: dict[str, Tensor] = {}
        for part in parts(batch, settings.gradient_accumulation):
            losses = engine(part, phase)
            engine.backward(losses.total)
            for name, loss in vars(losses).items():
                if loss is not None:
                    sums[name] = sums.get(name, 0) + loss.detach() / settings.gradient_accumulation
            self._clip_without_zero()
            engine.step()
        self.meter.add(step, sums)
        if self._applied():
            self._skipped = 0
            self.shards.average()
        else:
            self._skip(step)

    def _clip_without_zero(self) -> None:
        """DeepSpeed forgets the norm where it does not shard: clip here instead, when all gradients are in."""
        if not self._stage and self._engine.is_gradient_accumulation_boundary():
            self._norm = torch.nn.utils.clip_grad_norm_(
                self._engine.module.parameters(), self._settings.max_gradient_norm
            )

    def _applied(self) -> bool:
        """Whether the step was applied: ZeRO leaves out those whose gradients are not finite."""
        return bool(self._engine.was_step_applied() if self._stage else torch.isfinite(self._norm))

    def _skip(self, step: int) -> None:
        """Bear a step that was left out, but not without end; without ZeRO it was not left out.

        Raises:
            TrainingError: steps are lost again and again, or the weights were.
        """
        self._skipped += 1
        if self._stage and self._skipped < MOST_SKIPPED:
            return
        self.meter.settle()  # a loss that is not finite either says more
        raise TrainingError(
            f"the gradients are not finite at step {step + 1} of {self._settings.steps}"
            f"{f', the last of {self._skipped} in a row' if self._stage else ''}; nothing is exported, "
            f"{self._last_good()}: lower learning_rate or raise warmup_steps, and choose bf16 where precision is fp16"
        )

    def point(self, step: int, phase: Phase) -> CurvePoint:
        """The point of the curves after ``step``; all processes must call it."""
        norm = float(self._engine.get_global_grad_norm() if self._stage else self._norm)
        figures: dict[str, float | None] = {"gradient_cosine": None, "gradient_ratio": None}
        if phase.weight > 0 and not phase.detached:
            sums = self._engine.module.probe.take()
            if sums is not None:
                together = self._accelerator.reduce(sums.float().to(self._accelerator.device), "sum").tolist()
                figures["gradient_cosine"], figures["gradient_ratio"] = agreement(together)
        self.last = self.meter.point(
            step,
            supervision_weight=phase.weight,
            learning_rate=learning_rate(self._settings, step),
            gradient_norm=norm if math.isfinite(norm) else None,
            **figures,
        )
        return self.last


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
    group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=LONGEST_WAIT)
    accelerator = Accelerator(kwargs_handlers=[group])
    if accelerator.state.deepspeed_plugin is None:
        raise TrainingError("DeepSpeed is not on; start training through training.launch.launch, not by itself")
    # Under ZeRO-3 transformers would shard whatever else is loaded, all processes together: one that draws has to
    # load its text encoders alone.
    unset_hf_deepspeed_config()
    if on_cpu:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return accelerator


def _prepare(job: Job, accelerator: Any) -> tuple[Batches, Any]:
    """Batches and DeepSpeed engine."""
    settings, features = job.settings, Features(job.features, job.settings)
    family = family_of(settings.base_model)
    batches = Batches(
        features=features,
        settings=settings,
        family=family,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    model = SupervisedTransformer(family, features, settings)
    if settings.compile:
        compile_blocks(model.backbone)
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    engine, _ = accelerator.prepare(model, optimizer)
    if accelerator.num_processes == 1 and not settings.stage:
        engine.enable_backward_allreduce = False  # it would copy all gradients to and fro for nobody
    return batches, engine


def _ahead(batches: Batches, first: int, steps: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch; beside a GPU the next one is made while this one is trained on."""
    if device.type == "cpu":
        yield from ((step, batches[step]) for step in range(first, steps))
        return
    # A thread begins with the first device, whichever is this process's.
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        coming = pool.submit(batches.__getitem__, first)
        for step in range(first, steps):
            batch = coming.result()
            if step + 1 < steps:
                coming = pool.submit(batches.__getitem__, step + 1)
            yield step, move(batch, device)


def _device() -> str:
    """The kind of device: kernels, and so the last bits, depend on it."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU kernels for {torch.backends.cpu.get_cpu_capability()}"


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
