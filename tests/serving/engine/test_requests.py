"""What happens to requests that are late, cancelled, wrong or unlucky, and to those beside them."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lineage.digests import digest_path
from serving.backend import BackendError, Drawing, GoneError, LateError, RefusedError, UnusableError
from serving.engine.backend import BuiltIn
from tests.serving.engine.conftest import SAMPLING, SAVERS, drawing, engine, picture, pixels, run

LONG = 900
"""Steps that nobody waits for."""


async def until(condition: Callable[[], Any]) -> None:
    """Wait for it; `run` has the deadline."""
    while not condition():
        await asyncio.sleep(0.002)


async def idle(backend: BuiltIn) -> None:
    """Wait until no place is taken."""
    await until(lambda: not (backend.load_now().active or backend.load_now().waiting))


def test_a_short_request_that_joins_a_long_one_leaves_before_it(sd3: Path) -> None:
    async def work() -> list[str]:
        async with engine(sd3) as backend:
            left: list[str] = []

            async def one(asked: Drawing) -> None:
                await picture(backend, asked)
                left.append(asked.id)

            long = asyncio.create_task(one(drawing("long", num_inference_steps=200)))
            await until(lambda: backend.load_now().active)
            await asyncio.gather(long, one(drawing("short", num_inference_steps=2)))
            return left

    assert run(work) == ["short", "long"]


def test_a_client_that_goes_frees_its_place_at_the_next_step(sd3: Path) -> None:
    async def work() -> int:
        async with engine(sd3) as backend:
            stream = backend.generate("0", drawing("it", num_inference_steps=LONG, partial_images=3))
            await anext(stream)
            one = backend._pictures["it"]
            at = one.step
            await stream.aclose()
            await idle(backend)
            assert not backend._pictures and backend._models["0"].users.count == 0
            return one.step - at

    # The preview reached us some steps after it was made; from the moment of leaving at most the step in work is done.
    assert run(work) < LONG / 2


def test_a_cancelled_request_ends_and_the_others_go_on(sd3: Path, plain: Any) -> None:
    other = drawing("other", num_inference_steps=30)

    async def work() -> Any:
        async with engine(sd3) as backend:
            kept = asyncio.create_task(picture(backend, other))
            doomed = asyncio.create_task(picture(backend, drawing("doomed", num_inference_steps=LONG)))
            await until(lambda: "doomed" in backend._pictures and backend._pictures["doomed"].step > 0)
            backend.cancel("doomed")
            backend.cancel("nobody")
            with pytest.raises(BackendError, match="doomed was cancelled"):
                await doomed
            drawn = await kept
            await idle(backend)
            return drawn

    assert np.abs(pixels(run(work).image) - plain(sd3, other)).max() <= 1


@pytest.mark.parametrize("seconds", [-1.0, 0.2])
def test_a_deadline_ends_a_request_waiting_or_in_work(sd3: Path, seconds: float) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            late = drawing("it", num_inference_steps=LONG, deadline=time.monotonic() + seconds)
            with pytest.raises(LateError, match="deadline passed"):
                await picture(backend, late)
            await idle(backend)

    run(work)


def test_a_deadline_ends_a_request_even_where_the_worker_hangs(sd3: Path) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            release = threading.Event()
            hang = backend._worker.call(release.wait)
            try:
                with pytest.raises(LateError):
                    await picture(backend, drawing("it", deadline=time.monotonic() + 0.3))
            finally:
                release.set()
            await asyncio.wrap_future(hang)

    run(work)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": None}, "num_inference_steps is None"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"guidance_scale": 10**400}, "from 0 to 1000"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'"),
        ({"height": 33}, "multiples of 8"),
        ({"width": 72}, "width is 72; .* from 8 to 64"),
        ({"height": 0}, "height is 0"),
        ({"max_sequence_length": 513}, "from 0 to 512"),
    ],
)
def test_what_the_model_cannot_draw_is_refused_by_name(sd3: Path, sampling: dict[str, Any], message: str) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            with pytest.raises(RefusedError, match=message):
                await picture(backend, drawing("it", **sampling))

    run(work)


def test_a_seed_beyond_64_bits_and_an_id_in_use_are_refused(sd3: Path) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            with pytest.raises(RefusedError, match="64 bits"):
                await picture(backend, drawing("it", seed=2**64))
            first = asyncio.create_task(picture(backend, drawing("it", num_inference_steps=50)))
            await until(lambda: backend._pictures)
            with pytest.raises(RefusedError, match="is in work"):
                await picture(backend, drawing("it"))
            await first

    run(work)


@pytest.mark.parametrize("prompt", ["\ud800", "a" * 100_000, "\x00", "👩🏽‍🚀 ﷽ \u202e", "{} %s {0}"])
def test_unusual_prompts_are_drawn_or_refused_and_hurt_nobody(sd3: Path, prompt: str, plain: Any) -> None:
    other = drawing("other", num_inference_steps=6)

    async def work() -> Any:
        async with engine(sd3) as backend:
            unusual = picture(backend, drawing("it", prompt))
            return await asyncio.gather(unusual, picture(backend, other), return_exceptions=True)

    unusual, drawn = run(work)
    assert isinstance(unusual, RefusedError) or unusual.image.size == (32, 32)
    assert np.abs(pixels(drawn.image) - plain(sd3, other)).max() <= 1


def broken(sd3: Path, folder: Path) -> Path:
    """A bundle that draws NaN."""
    shutil.copytree(sd3, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.bias"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_model_that_draws_nan_is_found_out_while_it_warms_up(sd3: Path, tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(broken(sd3, tmp_path / "broken"), sd3) as backend:
            with pytest.raises(UnusableError, match="draws NaN"):
                await backend.warm("0")
            assert (await picture(backend, drawing("it"), "1")).step == 4

    run(work)


def failing(backend: BuiltIn, error: BaseException, when: Callable[[dict[str, Any]], bool]) -> None:
    """From now on the model's transformer raises ``error`` for such inputs."""

    def raise_it(module: torch.nn.Module, positional: Any, inputs: dict[str, Any]) -> None:
        if when(inputs):
            raise error

    backend._models["0"].transformer.register_forward_pre_hook(raise_it, with_kwargs=True)


def test_a_request_that_fails_does_not_fail_its_batch(sd3: Path, plain: Any) -> None:
    good = [drawing(str(n), "a beard", n, num_inference_steps=12) for n in range(3)]

    async def work() -> list[Any]:
        async with engine(sd3, rows=16) as backend:
            poisoned = backend._models["0"].family.first_latents(99, 32, 32, torch.float32)
            failing(
                backend, ValueError("bad row"), lambda i: bool((i["hidden_states"] == poisoned).flatten(1).all(1).any())
            )
            bad = picture(backend, drawing("bad", "a beard", 99))
            return await asyncio.gather(bad, *(picture(backend, one) for one in good), return_exceptions=True)

    bad, *drawn = run(work)
    assert isinstance(bad, BackendError) and "bad row" in str(bad)
    assert all(np.abs(pixels(d.image) - plain(sd3, one)).max() <= 1 for d, one in zip(drawn, good, strict=True))


def test_a_batch_that_memory_does_not_hold_is_drawn_in_smaller_ones(sd3: Path) -> None:
    async def work() -> int:
        async with engine(sd3, rows=16) as backend:
            failing(backend, torch.OutOfMemoryError("full"), lambda i: len(i["hidden_states"]) > 4)
            await asyncio.gather(*(picture(backend, drawing(str(n))) for n in range(6)))
            return backend._models["0"].limit(32, 32)

    assert run(work) <= 8


def test_a_thread_that_dies_fails_what_it_held_and_is_followed_by_another(sd3: Path) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            first = backend._worker._thread
            waiting = [
                asyncio.create_task(picture(backend, drawing(str(n), num_inference_steps=LONG))) for n in range(9)
            ]
            await until(lambda: backend.load_now().active)
            with pytest.raises(BackendError, match="died"):
                await asyncio.wrap_future(backend._worker.call(lambda: exec("raise SystemExit")))
            for ended in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(ended, BackendError) and "thread died of SystemExit" in str(ended)
            assert (await picture(backend, drawing("it"))).step == 4
            assert backend._worker._thread is not first and not first.is_alive()

    run(work)


def test_closing_ends_what_waits_and_takes_nothing_more(sd3: Path) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            waiting = [
                asyncio.create_task(picture(backend, drawing(str(n), num_inference_steps=LONG))) for n in range(9)
            ]
            await until(lambda: backend.load_now().active)
            await backend.close()
            for ended in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(ended, GoneError)
            with pytest.raises(GoneError):
                await picture(backend, drawing("it"))

    run(work)


def test_two_models_draw_at_once_and_an_unloaded_one_finishes_what_it_began(
    sd3: Path, bundles: Callable[[str], Path], plain: Any
) -> None:
    begun, other = drawing("begun", num_inference_steps=60), drawing("other", num_inference_steps=60)

    async def work() -> list[Any]:
        async with engine(sd3, bundles("flux")) as backend:
            tasks = [
                asyncio.create_task(picture(backend, begun, "0")),
                asyncio.create_task(picture(backend, other, "1")),
            ]
            await until(lambda: backend.load_now().active == 2)
            gone = asyncio.create_task(backend.unload("0"))
            await asyncio.sleep(0)
            with pytest.raises(GoneError):
                await picture(backend, drawing("late"), "0")
            await asyncio.gather(gone, *tasks)
            await backend.unload("nobody")
            return [task.result() for task in tasks]

    first, second = run(work)
    assert np.abs(pixels(first.image) - plain(sd3, begun)).max() <= 1
    assert np.abs(pixels(second.image) - plain(bundles("flux"), other)).max() <= 1


@pytest.mark.parametrize("family", list(SAVERS))
def test_the_digest_is_of_the_weights_in_memory(bundles: Callable[[str], Path], family: str) -> None:
    async def work() -> tuple[str, str]:
        async with engine(bundles(family)) as backend:
            whole = await backend.digest("0")
            with torch.no_grad():
                next(backend._models["0"].pipeline.text_encoder.parameters()).view(-1)[0] += 1e-3
            return whole, await backend.digest("0")

    whole, changed = run(work)
    assert whole == digest_path(bundles(family)) and changed not in ("", whole)


def test_a_digest_that_cannot_be_told_is_empty(sd3: Path) -> None:
    async def work() -> str:
        backend = BuiltIn()
        try:
            with pytest.raises(UnusableError, match="int4"):
                await backend.load("0", sd3, SAMPLING | {"precision": "int4"})
            await backend.load("0", sd3, SAMPLING | {"precision": "bfloat16"})
            assert (await picture(backend, drawing("it"))).step == 4
            return await backend.digest("0")
        finally:
            await backend.close()

    assert run(work) == ""


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_weights_that_diffusers_would_make_up_are_not_served(sd3: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(sd3, tmp_path / "short")
    path = next((tmp_path / "short" / part).glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})

    async def work() -> None:
        async with engine() as backend:
            with pytest.raises(UnusableError, match="lack"):
                await backend.load("0", tmp_path / "short", SAMPLING)
            with pytest.raises(UnusableError, match="no diffusers bundle"):
                await backend.load("0", tmp_path / "nowhere", SAMPLING)
            await backend.load("0", sd3, SAMPLING)
            with pytest.raises(UnusableError, match="loaded already"):
                await backend.load("0", sd3, SAMPLING)

    run(work)


def test_warming_up_measures_the_largest_useful_batch(sd3: Path) -> None:
    async def work() -> None:
        async with engine(sd3) as backend:
            backend._models["0"].limits = {}
            assert backend.load_now().capacity == 2 and backend.load_now().pictures_per_second == 0
            await backend.warm("0")
            rows, now = backend._models["0"].limits[32, 32], backend.load_now()
            assert 2 <= rows <= 64 and rows & (rows - 1) == 0
            assert now.capacity == 4 * rows // 2 and now.pictures_per_second > 0
            assert backend._models["0"].limit(16, 32) == 2 * rows and backend._models["0"].limit(64, 64) == max(
                1, rows // 4
            )

    run(work)


def test_a_model_like_one_that_was_measured_is_not_measured_again(
    sd3: Path, bundles: Callable[[str], Path], tmp_path: Path
) -> None:
    async def work() -> tuple[int, int]:
        async with engine(sd3, sd3, bundles("flux"), broken(sd3, tmp_path / "broken")) as backend:
            for model in backend._models.values():
                model.limits = {}
            first, second, other, _ = backend._models.values()
            forwards: list[Any] = []
            for model in (second, other):
                model.transformer.register_forward_hook(lambda module, *_: forwards.append(module))
            await backend.warm("0")
            await backend.warm("1")
            assert second.limits == first.limits and second.pictures_per_second == first.pictures_per_second > 0
            await backend.warm("2")
            with pytest.raises(UnusableError, match="draws NaN"):
                await backend.warm("3")
            return forwards.count(second.transformer), forwards.count(other.transformer)

    once, measured = run(work)
    assert once == 1 and measured > 4


def test_a_prompt_is_read_once_and_kept_within_bounds(sd3: Path) -> None:
    async def work() -> tuple[int, int, list[int]]:
        async with engine(sd3, sd3) as backend:
            calls: list[int] = []
            for model in backend._models.values():
                model.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
            for number in range(3):
                await picture(backend, drawing(str(number), "a beard"))
            await picture(backend, drawing("other model, equal encoders", "a beard"), "1")
            assert len(calls) == 2  # the prompt and the empty one
            one = backend._text.bytes // 2
            backend._text._most = 4 * one
            for number in range(6):
                await picture(backend, drawing(str(number), f"beard {number}"))
            return backend._text.bytes, 4 * one, [len(backend._text)]

    held, most, (count,) = run(work)
    assert held <= most and count == 4


def test_an_unloaded_model_is_let_go_of(sd3: Path) -> None:
    async def work() -> Any:
        async with engine(sd3, sd3) as backend:
            await asyncio.gather(*(picture(backend, drawing(f"{m} {n}"), m) for m in "01" for n in range(3)))
            held = weakref.ref(backend._models["0"].transformer)
            assert held() is not None
            await backend.unload("0")
            return held()

    assert run(work) is None
