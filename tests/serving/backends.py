"""Backends of the tests: real ones, which draw; `Painter` fills a picture as a file of weights and a seed say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lineage.artifacts import digest_of, listing
from serving.backend import BackendError, Drawing, Drawn, GoneError, LateError, Load, RefusedError, UnusableError

UNIT = 8


class Painter:
    """Draws noise that weights, prompt and seed decide, step by step, ``capacity`` pictures at once."""

    capacity = 4
    seconds = 0.0
    """A step takes."""

    def __init__(self) -> None:
        self.weights: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        self.drawn: list[tuple[str, str]] = []
        """Model and id of each finished picture."""
        self.ended: list[str] = []
        """Drawings that ended, finished or not."""
        self.active = self.waiting = 0
        self.dead = False
        self.closed = False
        self._places = asyncio.Semaphore(self.capacity)
        self._cancelled: set[str] = set()

    async def load(self, model: str, folder: Path, sampling: Mapping[str, Any]) -> None:
        self.weights[model] = next(iter(sorted(folder.rglob("*.safetensors")))).read_bytes()
        self.digests[model] = digest_of(listing(folder))

    async def warm(self, model: str) -> None:
        if b"NaN" in self.weights[model]:
            raise UnusableError("it draws NaN: its weights are broken")
        await asyncio.sleep(self.seconds)

    async def generate(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        height, width = drawing.sampling["height"], drawing.sampling["width"]
        if height % UNIT or width % UNIT:
            raise RefusedError(f"{width}x{height} is no multiple of {UNIT}")
        if model not in self.weights:
            raise GoneError(f"{model} is closed")
        self.waiting += 1
        try:
            async with self._places:
                self.waiting, self.active = self.waiting - 1, self.active + 1
                try:
                    async for drawn in self._steps(model, drawing):
                        yield drawn
                finally:
                    self.active, self.waiting = self.active - 1, self.waiting + 1
        finally:
            self.waiting -= 1
            self.ended.append(drawing.id)

    async def _steps(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        picture, steps = self.picture(model, drawing), drawing.sampling["num_inference_steps"]
        shown = {steps * (k + 1) // (drawing.partial_images + 1) for k in range(drawing.partial_images)}
        for step in range(1, steps + 1):
            await asyncio.sleep(self.seconds)
            if self.dead:
                raise BackendError("the worker died")
            if model not in self.weights or drawing.id in self._cancelled:
                raise GoneError(f"{model} is closed")
            if drawing.deadline and time.monotonic() > drawing.deadline:
                raise LateError("too late")
            if step == steps or step in shown:
                yield Drawn(picture, step, steps, {"steps": self.seconds * steps})
        self.drawn.append((model, drawing.id))

    def picture(self, model: str, drawing: Drawing) -> Image.Image:
        key = self.weights[model] + drawing.prompt.encode()
        random = np.random.default_rng([drawing.seed, *key])
        height, width = drawing.sampling["height"], drawing.sampling["width"]
        small = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    def cancel(self, drawing: str) -> None:
        self._cancelled.add(drawing)

    async def digest(self, model: str) -> str:
        return self.digests[model]

    def load_now(self) -> Load:
        rate = self.capacity / (self.seconds * 4) if self.seconds else 100.0
        return Load(self.active, self.waiting, self.capacity, rate, self.active / self.capacity)

    async def unload(self, model: str) -> None:
        self.weights.pop(model, None)

    async def close(self) -> None:
        self.closed = True
        self.weights.clear()


class Slow(Painter):
    """A step takes a fifth of a second."""

    seconds = 0.2


class Stuck(Painter):
    """Begins and never ends."""

    seconds = 3600.0

    async def warm(self, model: str) -> None:
        pass


class Portraits(Painter):
    """Draws with the avatars' model, whole requests one after the other."""

    capacity = 1

    async def load(self, model: str, folder: Path, sampling: Mapping[str, Any]) -> None:
        from training.families.drawing import Drawer

        self.drawer = await asyncio.to_thread(Drawer, folder)
        self.weights[model], self.digests[model] = b"", digest_of(listing(folder))

    async def _steps(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        steps, began = drawing.sampling["num_inference_steps"], time.monotonic()
        (picture,) = await asyncio.to_thread(self.drawer.draw, [drawing.prompt], [drawing.seed], dict(drawing.sampling))
        yield Drawn(picture, steps, steps, {"steps": time.monotonic() - began})
        self.drawn.append((model, drawing.id))
