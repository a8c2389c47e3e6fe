"""A picture is what plain diffusers draws for it alone, whoever shares its batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.backend import Drawing
from serving.engine.model import Batch
from tests.serving.engine.conftest import SAMPLING, SAVERS, drawing, engine, picture, pixels, run
from training.families.drawing import Drawer

AVATARS = Path(__file__).parents[3] / "examples" / "avatars" / "models" / "base"
MIXED = [
    {"prompt": "a portrait, red shirt", "seed": 1, "num_inference_steps": 4, "guidance_scale": 3.0},
    {"prompt": "a beard", "seed": 2, "num_inference_steps": 7, "guidance_scale": 1.0},
    {"prompt": "", "seed": 3, "num_inference_steps": 1, "guidance_scale": 0.0},
    {"prompt": "a beard", "seed": 4, "num_inference_steps": 5, "guidance_scale": 7.5},
    {"prompt": "a portrait with glasses and a long beard", "seed": 5, "num_inference_steps": 3, "guidance_scale": 2.0},
]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures in each batch that was stepped with, beside what the engine does."""
    seen: list[int] = []
    step = Batch.step

    def counted(self: Batch) -> None:
        seen.append(len(self.members))
        step(self)

    monkeypatch.setattr(Batch, "step", counted)
    return seen


@pytest.mark.parametrize("family", list(SAVERS))
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_a_mixed_batch_draws_each_picture_as_plain_diffusers_alone(
    bundles: Callable[[str], Path], plain: Any, batches: list[int], family: str, size: tuple[int, int]
) -> None:
    bundle, (height, width) = bundles(family), size
    asked = [drawing(str(n), **changes, height=height, width=width) for n, changes in enumerate(MIXED)]

    async def work() -> list[Any]:
        async with engine(bundle, rows=16) as backend:
            backend._models["0"].limits[height, width] = 16
            return await asyncio.gather(*(picture(backend, one) for one in asked))

    drawn = [pixels(one.image) for one in run(work)]
    expected = [plain(bundle, one) for one in asked]
    for ours, theirs in zip(drawn, expected, strict=True):
        assert ours.shape == (height, width, 3) and np.abs(ours - theirs).max() <= 1
    assert max(batches) >= 4
    # What is compared differs from picture to picture by far more than what is borne.
    assert all(np.abs(expected[0] - other).max() > 20 for other in expected[1:])


@pytest.mark.parametrize("family", list(SAVERS))
def test_a_picture_is_drawn_in_the_precision_that_its_model_was_judged_in(
    bundles: Callable[[str], Path], family: str
) -> None:
    asked, bundle = drawing("it", seed=7, num_inference_steps=6, precision="bfloat16"), bundles(family)

    async def work() -> Any:
        async with engine(bundle, sampling=asked.sampling) as backend:
            assert backend._models["0"].transformer.dtype == torch.bfloat16
            return await picture(backend, asked)

    judged = Drawer(bundle, "bfloat16").draw([asked.prompt], [asked.seed], asked.sampling)[0]
    # Eight bits of a number are kept, and sums are rounded otherwise in another batch.
    assert np.abs(pixels(run(work).image) - pixels(judged)).max() <= 12


def test_the_avatars_are_drawn_as_they_were_judged(plain: Any, batches: list[int]) -> None:
    sampling = {"num_inference_steps": 6, "guidance_scale": 2.5, "max_sequence_length": 1, "height": 64, "width": 64}
    prompts = ["a portrait of a person with red hair", "a portrait of a person with a blue shirt", ""]
    asked = [Drawing(str(n), prompts[n % 3], n, sampling | {"guidance_scale": (2.5, 1.0)[n % 2]}) for n in range(6)]

    async def work() -> list[Any]:
        async with engine(AVATARS, rows=16, sampling=sampling) as backend:
            return await asyncio.gather(*(picture(backend, one) for one in asked))

    for one, drawn in zip(asked, run(work), strict=True):
        assert np.abs(pixels(drawn.image) - plain(AVATARS, one)).max() <= 1
    assert max(batches) >= 4


@pytest.mark.parametrize("family", list(SAVERS))
def test_neighbours_change_no_bit_of_a_deterministic_picture(bundles: Callable[[str], Path], family: str) -> None:
    asked = drawing("it", "a beard", 7, deterministic=True)

    async def alone() -> Any:
        async with engine(bundles(family)) as backend:
            return await picture(backend, asked)

    async def crowd() -> Any:
        async with engine(bundles(family)) as backend:
            others = [drawing(str(n), "no beard", n, num_inference_steps=3 + n) for n in range(5)]
            same = [drawing(f"same {n}", "a beard", n, deterministic=True) for n in range(2)]
            return (await asyncio.gather(*(picture(backend, one) for one in (*others, asked, *same))))[5]

    assert pixels(run(alone).image).tobytes() == pixels(run(crowd).image).tobytes()


@pytest.mark.parametrize("family", list(SAVERS))
def test_a_deterministic_picture_keeps_its_latents_to_the_bit(
    bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Pictures have 8 bits a channel; what they are decoded from has 32, and a guarantee needs all of them."""
    from serving.engine.model import Model

    finished: dict[str, bytes] = {}
    show = Model.show

    def noted(self: Model, one: Any, latents: Any) -> Any:
        finished[one.drawing.id] = latents.numpy().tobytes()
        return show(self, one, latents)

    monkeypatch.setattr(Model, "show", noted)
    seen = []
    for others in (0, 1, 4):

        async def work(others: int = others) -> None:
            async with engine(bundles(family)) as backend:
                crowd = [drawing(str(n), "a shirt", n, guidance_scale=1.0 + n) for n in range(others)]
                it = drawing("it", "a beard", 7, deterministic=True)
                await asyncio.gather(*(picture(backend, one) for one in (*crowd, it)))

        run(work)
        seen.append(finished["it"])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("family", list(SAVERS))
def test_previews_come_first_spread_over_the_steps(bundles: Callable[[str], Path], family: str) -> None:
    async def work() -> list[Any]:
        async with engine(bundles(family)) as backend:
            asked = drawing("it", num_inference_steps=8, partial_images=3)
            return [drawn async for drawn in backend.generate("0", asked)]

    drawn = run(work)
    assert [(one.step, one.steps) for one in drawn] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert all(one.image.size == (32, 32) for one in drawn)
    away = [np.abs(pixels(one.image) - pixels(drawn[-1].image)).mean() for one in drawn]
    assert away[0] > away[2] > 0
    assert set(drawn[-1].seconds) == {"queue", "text", "steps", "decode"} and min(drawn[-1].seconds.values()) >= 0


def test_the_last_preview_is_where_the_velocity_leads(sd3: Path, plain: Any) -> None:
    """After step n - 1 of n the predicted clean latents are the next Euler step's target, σ = 0, for a model whose
    velocity did not change: of a one-step picture the preview would be the picture. So two steps of half the way."""
    one_step = drawing("one", num_inference_steps=1)

    async def work() -> list[Any]:
        async with engine(sd3) as backend:
            return [d async for d in backend.generate("0", drawing("two", num_inference_steps=2, partial_images=1))]

    first, _ = run(work)
    assert first.step == 1 and np.abs(pixels(first.image) - plain(sd3, one_step)).max() <= 1


def test_sampling_that_the_caller_leaves_out_is_the_pipelines(sd3: Path, plain: Any) -> None:
    few = {"num_inference_steps": 2, "guidance_scale": 2.0}

    async def work() -> Any:
        async with engine(sd3) as backend:
            return await picture(backend, Drawing("it", "a beard", 3, few))

    assert np.abs(pixels(run(work).image) - plain(sd3, Drawing("it", "a beard", 3, few))).max() <= 1
    assert SAMPLING["max_sequence_length"] != 256
