"""How many pictures one forward is worth on this machine: measured between the steps of whoever draws meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import torch

from serving.engine.model import Model
from serving.engine.text import TextCache
from serving.engine.worker import Worker
from serving.memory import free_memory
from training.encode.encoders import joined

GROWTH = 1.05
"""A batch twice as large is worth its longer steps where it gives so many times as many rows a second."""
ROUNDS = 3


async def measure(worker: Worker, model: Model, cache: TextCache, most: int, decode: float) -> None:
    """Find the largest useful batch for the size that ``model`` was judged at, and the pictures a second it gives.

    Doubles the batch until two larger ones in a row gave no more rows a second, there are ``most`` rows, or memory does
    not hold more: a GPU's is tried, main memory is asked before, because it ends processes. The smallest batch that is
    nearly as good as the best is taken: larger ones only lengthen steps.

    Args:
        decode: seconds that decoding a picture takes.
    """
    plan, rows, idle = model.plan, model.plan.rows, 0
    paces: dict[int, float] = {}
    while rows <= most and idle < 2:
        before = peak_bytes()
        try:
            pace = rows / await _forward_seconds(worker, model, cache, rows)
        except torch.OutOfMemoryError:
            break
        idle = 0 if pace > GROWTH * max(paces.values(), default=0.0) else idle + 1
        paces[rows] = pace
        if model.device.type == "cpu" and 2 * (peak_bytes() - before) > free_memory(gpu=False):
            break
        rows *= 2
    best = min((n for n, pace in paces.items() if GROWTH * pace >= max(paces.values())), default=plan.rows)
    model.limits[plan.height, plan.width] = best
    if paces:
        pictures = best // plan.rows
        model.pictures_per_second = pictures / (plan.steps * best / paces[best] + pictures * decode)


async def _forward_seconds(worker: Worker, model: Model, cache: TextCache, rows: int) -> float:
    forward = await asyncio.wrap_future(worker.call(lambda: _forward(model, cache, rows)))
    times = [await asyncio.wrap_future(worker.call(forward)) for _ in range(ROUNDS + 1)]
    fastest: float = min(times[1:])  # whatever else the machine does only adds
    return fastest


def _forward(model: Model, cache: TextCache, rows: int) -> Callable[[], float]:
    """A forward of ``rows`` rows of noise; gives its seconds."""
    plan, transformer = model.plan, model.transformer
    noise = model.family.first_latents(0, plan.height, plan.width, transformer.dtype).to(model.device)
    latents = noise.expand(rows, -1, -1, -1).contiguous()
    text = joined([model.read("", plan.longest, cache)] * rows)
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
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def peak_bytes() -> int:
    """The most bytes of main memory that this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
