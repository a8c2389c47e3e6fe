"""How many pictures one forward is worth on this machine: measured between the steps of whoever draws meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.engine.model import Model, join

if TYPE_CHECKING:
    from serving.engine.text import TextCache
    from serving.engine.worker import Worker

GROWTH = 1.05
"""A batch twice as large is worth its longer steps where it gives so many times as many rows a second."""
ROUNDS = 3


async def measure(worker: Worker, model: Model, cache: TextCache, most: int, decode: float) -> None:
    """Find the largest useful batch for the size that ``model`` was judged at, and the pictures a second it gives.

    Doubles the batch until rows a second grow no more, there are ``most`` rows, or memory does not hold more: a GPU's
    is tried, main memory is asked before, because it ends processes.

    Args:
        decode: seconds that decoding a picture takes.
    """
    import torch

    plan, rows, best, pace = model.plan, model.plan.rows, model.plan.rows, 0.0
    while rows <= most:
        before = peak_bytes()
        try:
            seconds = await _forward_seconds(worker, model, cache, rows)
        except torch.OutOfMemoryError:
            break
        if rows / seconds < GROWTH * pace:
            break
        best, pace = rows, rows / seconds
        if model.device.type == "cpu" and 2 * (peak_bytes() - before) > spare_bytes():
            break
        rows *= 2
    model.limits[plan.height, plan.width] = best
    pictures = best // plan.rows
    if pace:
        model.pictures_per_second = pictures / (plan.steps * best / pace + pictures * decode)


async def _forward_seconds(worker: Worker, model: Model, cache: TextCache, rows: int) -> float:
    forward = await asyncio.wrap_future(worker.call(lambda: _forward(model, cache, rows)))
    times = [await asyncio.wrap_future(worker.call(forward)) for _ in range(ROUNDS + 1)]
    return statistics.median(times[1:])


def _forward(model: Model, cache: TextCache, rows: int) -> Callable[[], float]:
    """A forward of ``rows`` rows of noise; gives its seconds."""
    import torch

    plan, transformer = model.plan, model.transformer
    noise = model.family.first_latents(0, plan.height, plan.width, transformer.dtype).to(model.device)
    latents = noise.expand(rows, -1, -1, -1).contiguous()
    text = join([model.read("", plan.longest, cache)] * rows)
    timesteps = torch.full((rows,), 500.0, device=model.device)
    guidance = torch.full((rows,), plan.guidance, device=model.device)

    def forward() -> float:
        _wait(model)
        began = time.perf_counter()
        model.velocity(latents, timesteps, text, guidance)
        _wait(model)
        return time.perf_counter() - began

    return forward


def _wait(model: Model) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def peak_bytes() -> int:
    """The most bytes of main memory that this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spare_bytes() -> int:
    """Bytes of main memory that are free, and that the container still grants."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (granted := limit.read_text().strip()) != "max":
        free = min(free, int(granted) - int(used.read_text()))
    return free
