"""The training loop, as each process runs it: accelerate with DeepSpeed around one readable function."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.settings import TrainingSettings
from training.teach.probe import agreement
from training.teach.supervision import Phase, schedule
from training.train.checkpoints import Saving, newest
from training.train.curves import CurvePoint
from training.train.deepspeed_config import deepspeed_config
from training.train.export import export_candidate
from training.train.job import TrainingJob, TrainingResult
from training.train.masters import Masters
from training.train.meter import Meter
from training.train.model import (
    BACKBONE,
    Batch,
    Batches,
    SupervisedTransformer,
    compile_blocks,
    parameter_groups,
    parts,
)

MOST_SKIPPED = 40
"""Optimizer steps in a row that may be left out because gradients were not finite: fp16 finds its loss scale so."""
NOTHING = Phase(0.0, detached=False)
LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for one that reads checkpoints or draws pictures."""


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of ``step``, counted from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(job: TrainingJob) -> TrainingResult | None:
    """Train, and export the averaged weights to the candidate; the main process gives the result, others None.

    Raises:
        TrainingError: the features or the base model do not fit, the loss is not finite or runs away, or a checkpoint
            cannot be written or is not of this run.
        Stopped: a process was asked to end; a checkpoint of the last finished step is there.
    """
    began = time.perf_counter()
    settings = job.settings
    accelerator = start_accelerator(deepspeed_config(settings))
    batches, engine = prepare(job, accelerator)
    trainer = Trainer(job, accelerator, engine)
    first = trainer.saving.resume()
    trained_from, worked_from = time.perf_counter(), time.process_time()
    for step, batch in _ahead(batches, first, settings.steps, accelerator.device):
        phase = schedule(settings.supervision, step, settings.steps)
        trainer.step(step, batch, phase)
        if trainer.reports(step):
            point = trainer.point(step, phase)
            if accelerator.is_main_process:
                job.report(point)
        trainer.saving.after(step + 1)
    trained_to, worked_to = time.perf_counter(), time.process_time()
    weights = trainer.masters.gather(engine.module, BACKBONE, accelerator.is_main_process)
    memory = accelerator.gather(torch.tensor([_peak_memory()], device=accelerator.device))
    accelerator.end_training()  # nothing is exchanged any more: a group taken down late can abort its process
    if not accelerator.is_main_process:
        return None
    export_candidate(settings.base_model, weights, job.candidate, settings.adapter)
    seconds = {"loading": trained_from - began, "training": trained_to - trained_from}
    seconds |= {"training_cpu": worked_to - worked_from, "export": time.perf_counter() - trained_to}
    return TrainingResult(
        final=trainer.last,
        seconds=seconds,
        peak_memory_bytes=[int(m) for m in memory.tolist()],
        threads_per_process=torch.get_num_threads(),
        device=_device(),
        resumed_from=first,
    )


class Trainer:
    """One optimizer step, and what is known about it."""

    def __init__(self, job: TrainingJob, accelerator: Any, engine: Any) -> None:
        self._settings, self._accelerator, self._engine = job.settings, accelerator, engine
        self._stage = job.settings.stage
        self._norm = torch.tensor(torch.nan)
        self._skipped = 0
        self._last_good = partial(newest, job.checkpoints)
        self.masters = Masters(engine, self._stage, job.settings.ema_decay)
        self.meter = Meter(accelerator, job.settings, self._last_good)
        self.saving = Saving(job, accelerator, engine.module, self.masters, self.meter)
        self.last: CurvePoint

    def reports(self, step: int) -> bool:
        """Whether a point of the curves follows ``step``."""
        return (step + 1) % self._settings.log_every == 0 or step + 1 == self._settings.steps

    def step(self, step: int, batch: Batch, phase: Phase) -> None:
        """Do the optimizer step ``step``, counted from 0."""
        settings, engine = self._settings, self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        engine.module.probe.listening = self.reports(step)
        self.masters.forget_gradients()
        sums: dict[str, Tensor] = {}
        for part in parts(batch, settings.gradient_accumulation):
            losses = engine(part, phase)
            engine.backward(losses.loss)
            for name, loss in vars(losses).items():
                if loss is not None:
                    sums[name] = sums.get(name, 0) + loss.detach() / settings.gradient_accumulation
            self._clip_without_zero()
            engine.step()
        self.meter.add(step, sums)
        if self._applied():
            self._skipped = 0
            self.masters.average()
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
        """Count skipped optimizer steps. Without ZeRO a gradient that is not finite was applied: stop at once.

        Raises:
            TrainingError: `MOST_SKIPPED` steps in a row were skipped, or the weights are spoilt.
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
        figures: dict[str, float | None] = {"supervision_weight": phase.weight}
        figures["learning_rate"] = learning_rate(self._settings, step)
        figures["gradient_norm"] = norm if math.isfinite(norm) else None
        sums = self._engine.module.probe.take() if phase.weight > 0 and not phase.detached else None
        if sums is not None:
            together = self._accelerator.reduce(sums.float().to(self._accelerator.device), "sum").tolist()
            figures["gradient_cosine"], figures["gradient_ratio"] = agreement(together)
        self.last = self.meter.point(step, **figures)
        return self.last


def start_accelerator(config: dict[str, Any]) -> Any:
    """An Accelerator under DeepSpeed with this configuration; on a CPU over gloo.

    Without the explicit backend accelerate counts one process per rank there, and ``cpu=True`` would silently
    turn DeepSpeed off.
    """
    import deepspeed.ops
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs

    on_cpu = not torch.cuda.is_available()
    # DeepSpeed would first compile, for a minute or more and with a C++ compiler that images then need, an
    # operator that only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=LONGEST_WAIT)
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[group])
    # Under ZeRO-3 transformers would shard whatever else is loaded, all processes together: one that draws has to
    # load its text encoders alone.
    unset_hf_deepspeed_config()
    if on_cpu:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return accelerator


def prepare(job: TrainingJob, accelerator: Any) -> tuple[Batches, Any]:
    """Batches and DeepSpeed engine."""
    settings, features = job.settings, Features(job.features, job.settings)
    family = family_of(settings.base_model)
    batches = Batches(features, settings, family, accelerator.process_index, accelerator.num_processes)
    model = SupervisedTransformer(family, features, settings)
    if settings.compile:
        compile_blocks(model.backbone)
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    engine, _ = accelerator.prepare(model, optimizer)
    if accelerator.num_processes == 1 and not settings.stage:
        engine.enable_backward_allreduce = False  # it would copy all gradients to and fro for nobody
    if settings.replay.captions:
        shared = job.candidate.with_name(f"{job.candidate.name}.held")
        shared.parent.mkdir(parents=True, exist_ok=True)
        batches = dataclasses.replace(batches, held=base_streams(batches, engine, accelerator, shared))
    return batches, engine


@torch.no_grad()
def base_streams(batches: Batches, engine: Any, accelerator: Any, shared: Path) -> Tensor:
    """The base model's image stream for each replayed draw, (draws, T, D), on the CPU.

    The model that is going to train gives it, before its first step: its weights are the base model's then, and an
    adapter changes nothing yet. No second model is needed. The processes of a machine map one file, ``shared``, which
    has no name any more when this returns.
    """
    replay = batches.settings.replay
    with shared.open("wb") if accelerator.is_local_main_process else nullcontext() as file:
        for start in range(0, replay.draws, replay.batch_size):
            numbers = [(start + n) % replay.draws for n in range(replay.batch_size)]
            mine = send_to_device(batches.replay(numbers), accelerator.device)
            streams = accelerator.gather(engine(mine, NOTHING)).cpu().contiguous()
            if file:
                file.write(streams.view(torch.uint8).numpy().tobytes())
    accelerator.wait_for_everyone()
    shape = (replay.draws, *streams.shape[1:])
    held = torch.from_file(str(shared), size=math.prod(shape), dtype=streams.dtype).view(shape)
    accelerator.wait_for_everyone()
    if file:
        shared.unlink()
    return held


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
            yield step, send_to_device(batch, device)


def _device() -> str:
    """The kind of device: kernels, and so the last bits, depend on it."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU kernels for {torch.backends.cpu.get_cpu_capability()}"


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
