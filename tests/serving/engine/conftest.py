"""Tiny random bundles of each family, and what plain diffusers draws with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from serving.backend import Backend, Drawing, Drawn
from serving.engine.backend import BuiltIn
from tests.training.tiny_families import save_flux, save_qwen_image, save_sd3, save_sd3_with_t5
from training.families.drawing import Drawer

SAVERS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3,
    "sd3-t5": save_sd3_with_t5,
    "flux": save_flux,
    "qwen-image": save_qwen_image,
}
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 24, "height": 32, "width": 32}
T = TypeVar("T")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle by its family's name, made once; nothing in it is changed by a test."""
    made: dict[str, Path] = {}

    def bundle(name: str) -> Path:
        if name not in made:
            made[name] = SAVERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return bundle


@pytest.fixture(scope="session")
def sd3(bundles: Callable[[str], Path]) -> Path:
    """The smallest of them."""
    return bundles("sd3")


@pytest.fixture(scope="session")
def plain(bundles: Callable[[str], Path]) -> Callable[[Path, Drawing], NDArray[np.int16]]:
    """What plain diffusers draws for one drawing alone: (H, W, 3), 0 to 255."""
    drawers: dict[Path, Drawer] = {}

    def draw(bundle: Path, drawing: Drawing) -> NDArray[np.int16]:
        if bundle not in drawers:
            drawers[bundle] = Drawer(bundle)
        return pixels(drawers[bundle].draw([drawing.prompt], [drawing.seed], drawing.sampling)[0])

    return draw


def pixels(image: Any) -> NDArray[np.int16]:
    """(H, W, 3), 0 to 255, of a kind that can be subtracted."""
    return np.asarray(image).astype(np.int16)


def drawing(name: str, prompt: str = "a beard", seed: int = 0, **more: Any) -> Drawing:
    """A drawing with `SAMPLING`, changed by ``more``; fields of `Drawing` go where they belong."""
    fields = {key: more.pop(key) for key in ("partial_images", "deterministic", "deadline") if key in more}
    return Drawing(name, prompt, seed, SAMPLING | more, **fields)


@asynccontextmanager
async def engine(*loaded: Path, rows: int = 8, sampling: Mapping[str, Any] = SAMPLING) -> AsyncIterator[BuiltIn]:
    """A backend with bundles loaded as "0", "1", …, whose largest useful batch is ``rows`` without being measured."""
    backend = BuiltIn()
    try:
        for number, bundle in enumerate(loaded):
            await backend.load(str(number), bundle, sampling)
            model = backend._models[str(number)]
            model.limits[model.plan.height, model.plan.width] = rows
        yield backend
    finally:
        await backend.close()


async def picture(backend: Backend, asked: Drawing, model: str = "0") -> Drawn:
    """The finished picture."""
    return [drawn async for drawn in backend.generate(model, asked)][-1]


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run on an event loop; whoever hangs for a minute fails."""

    async def timed() -> T:
        return await asyncio.wait_for(work(), 60)

    torch.manual_seed(0)
    return asyncio.run(timed())
