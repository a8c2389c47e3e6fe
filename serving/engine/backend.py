"""The built-in backend: the seam's face to the event loop; one worker thread behind it computes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch

from serving.backend import BackendError, Drawing, Drawn, GoneError, Load, RefusedError, UnusableError
from serving.background import in_background
from serving.engine.measure import measure
from serving.engine.model import Model
from serving.engine.picture import Picture
from serving.engine.text import TextCache
from serving.engine.turns import HELD
from serving.engine.worker import Worker

MOST_ROWS = 64
"""Of a batch, whatever the measurement says."""
TEXT_BYTES = 256 << 20
"""Of prompts' tensors that are kept."""


class BuiltIn:
    """Batches SD3, FLUX and Qwen-Image by denoising steps, on one GPU or on the CPU.

    Args:
        device: as torch names it; None: the GPU where there is one.
        threads: of torch; None: as torch chooses, at most the CPUs that the container grants.
    """

    def __init__(self, device: str | None = None, threads: int | None = None) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._text = TextCache(TEXT_BYTES)
        self._worker = Worker(threads, self._text)
        self._models: dict[str, Model] = {}
        self._pictures: dict[str, Picture] = {}

    async def load(self, model: str, folder: Path, sampling: Mapping[str, Any]) -> None:
        """See `Backend.load`."""
        if model in self._models:
            raise UnusableError(f"{model} is loaded already; unload it first")
        # Not in the worker: reading weights takes long, and pictures are drawn meanwhile.
        self._models[model] = await in_background(Model, model, folder, sampling, self._device)

    async def warm(self, model: str) -> None:
        """See `Backend.warm`. Where a model like it was measured, one step shows that it draws."""
        loaded = self._find(model)
        known = next((m for m in self._models.values() if m.pictures_per_second and m.is_like(loaded)), None)
        sampling = loaded.sampling if known is None else loaded.sampling | {"num_inference_steps": 1}
        try:
            drawn = [one async for one in self.generate(model, Drawing(f"warm-up of {model}", "", 0, sampling))]
            if known is None:
                await measure(self._worker, loaded, self._text, MOST_ROWS, drawn[-1].seconds["decode"])
            else:
                loaded.limits, loaded.pictures_per_second = known.limits, known.pictures_per_second
        except (BackendError, RuntimeError) as error:
            raise UnusableError(f"{model} fails while it is warmed up: {error}") from error

    async def generate(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        """See `Backend.generate`."""
        loaded = self._find(model)
        if drawing.id in self._pictures:
            raise RefusedError(f"a drawing with the id {drawing.id} is in work")
        one = self._pictures[drawing.id] = Picture(loaded, drawing)
        with loaded.users:
            try:
                self._worker.submit(one)
                while True:
                    yield (drawn := await one.news())
                    if drawn.step == drawn.steps:
                        return
            finally:
                one.ended = one.ended or BackendError(f"nobody waits for {drawing.id}")
                self._worker.wake()
                del self._pictures[drawing.id]

    def cancel(self, drawing: str) -> None:
        """See `Backend.cancel`."""
        if one := self._pictures.get(drawing):
            one.tell(BackendError(f"drawing {drawing} was cancelled"))
            self._worker.wake()

    async def digest(self, model: str) -> str:
        """The ``tree-sha256:`` of the folder that was loaded, its weights hashed as they lie in memory.

        "" where memory holds fewer bits than the files. Takes as long as hashing the folder.
        """
        return await in_background(self._find(model).weights.digest)

    def load_now(self) -> Load:
        """See `Backend.load_now`."""
        models = list(self._models.values())
        capacity = max((HELD * m.limit(m.plan.height, m.plan.width) // m.plan.rows or 1 for m in models), default=0)
        return Load(
            active=self._worker.turns.active,
            waiting=self._worker.waiting(),
            capacity=capacity,
            pictures_per_second=max((m.pictures_per_second for m in models), default=0.0),
            occupancy=self._worker.occupancy,
        )

    async def unload(self, model: str) -> None:
        """See `Backend.unload`."""
        loaded = self._models.pop(model, None)
        if loaded is None:
            return
        await loaded.users.gone()
        del loaded
        with contextlib.suppress(GoneError):
            await asyncio.wrap_future(self._worker.call(_free))

    async def close(self) -> None:
        """See `Backend.close`."""
        self._models.clear()
        await asyncio.to_thread(self._worker.stop)

    def _find(self, model: str) -> Model:
        if model not in self._models:
            raise GoneError(f"{model} is closed; ask for the one that is served now")
        return self._models[model]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
