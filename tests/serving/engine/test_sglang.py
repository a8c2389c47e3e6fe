"""The second backend against a loopback server with SGLang's routes: only verified weights draw."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lineage.digests import digest_path
from serving.backend import BackendError, GoneError, LateError, RefusedError, UnusableError
from serving.sglang import SGLang
from tests.serving.engine.conftest import SAMPLING as PLAIN
from tests.serving.engine.conftest import drawing, picture, run
from tests.serving.engine.sglang_server import Server, served

SAMPLING = PLAIN | {"precision": "bfloat16"}
"""As SGLang's servers hold transformers."""


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as running:
        yield running


@asynccontextmanager
async def sglang(*servers: Server) -> AsyncIterator[SGLang]:
    backend = SGLang([server.url for server in servers])
    try:
        yield backend
    finally:
        await backend.close()


def test_a_verified_folder_is_handed_over_compared_and_draws(server: Server, sd3: Path) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            await backend.load("new", sd3, SAMPLING)
            await backend.warm("new")
            drawn = await picture(backend, drawing("it", "a beard", 7, num_inference_steps=9), "new")
            assert (drawn.step, drawn.steps, drawn.image.size) == (9, 9, (32, 32))
            assert drawn.image.getpixel((0, 0)) == (7, 9, 9)
            assert await backend.digest("new") == digest_path(sd3)
            now = backend.load_now()
            assert now.capacity == 1 and now.active == 0 and now.pictures_per_second > 0

    run(work)
    assert server.path == str(sd3)
    assert server.asked[-2] == {
        "route": "/v1/images/generations",
        "prompt": "a beard",
        "n": 1,
        "size": "32x32",
        "response_format": "b64_json",
        "output_format": "png",
        "seed": 7,
        "generator_device": "cpu",
        "num_inference_steps": 9,
        "guidance_scale": 3.0,
        "max_sequence_length": 24,
        "diffusers_kwargs": {"max_sequence_length": 24},
    }


def test_weights_other_than_the_verified_ones_are_unusable(server: Server, sd3: Path, tmp_path: Path) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            update = server.update

            def tampered(body: dict[str, Any]) -> Any:
                answer = update(body)
                with torch.no_grad():
                    server.transformer.proj_out.bias[0] += 1
                return answer

            server.update = tampered  # type: ignore[method-assign]
            with pytest.raises(UnusableError, match="holds other weights"):
                await backend.load("new", sd3, SAMPLING)
            with pytest.raises(GoneError):
                await picture(backend, drawing("it"), "new")

    run(work)


def test_weights_that_change_later_change_the_digest(server: Server, sd3: Path) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            await backend.load("new", sd3, SAMPLING)
            with torch.no_grad():
                server.transformer.proj_out.bias[0] += 1
            assert await backend.digest("new") not in ("", digest_path(sd3))

    run(work)


def test_a_server_in_another_precision_is_found_out(server: Server, sd3: Path) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            with pytest.raises(UnusableError, match="in float32"):
                await backend.load("new", sd3, PLAIN)

    run(work)


@pytest.mark.parametrize(
    ("route", "status", "body"),
    [
        ("/update_weights_from_disk", 400, b'{"success": false, "message": "Failed"}'),
        ("/update_weights_from_disk", 200, b'{"success": false, "message": "Failed"}'),
        ("/update_weights_from_disk", 500, b"Traceback"),
        ("/get_weights_checksum", 500, b'{"error": "x"}'),
        ("/get_weights_checksum", 200, b'{"transformer": "not_found"}'),
        ("/get_weights_checksum", 200, b"[]"),
    ],
)
def test_a_server_that_does_not_load_is_told_of(
    server: Server, sd3: Path, route: str, status: int, body: bytes
) -> None:
    server.broken[route] = (status, body)

    async def work() -> None:
        async with sglang(server) as backend:
            with pytest.raises(UnusableError, match=r"127\.0\.0\.1"):
                await backend.load("new", sd3, SAMPLING)

    run(work)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"data": []}'),
        (200, b'{"data": [{"b64_json": "bm8="}]}'),
        (200, b"{"),
        (503, b"{}"),
        (200, b'{"data": 1}'),
    ],
)
def test_an_answer_without_a_picture_is_an_error(server: Server, sd3: Path, status: int, body: bytes) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            await backend.load("new", sd3, SAMPLING)
            server.broken["/v1/images/generations"] = (status, body)
            with pytest.raises(BackendError, match=r"127\.0\.0\.1"):
                await picture(backend, drawing("it"), "new")
            with pytest.raises(UnusableError, match="warmed up"):
                await backend.warm("new")

    run(work)


def test_with_two_servers_the_old_model_draws_while_the_new_one_loads(sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3, tmp_path / "next")

    async def work() -> None:
        with served() as one, served() as two:
            async with sglang(one, two) as backend:
                await backend.load("old", sd3, SAMPLING)
                await backend.load("new", tmp_path / "next", SAMPLING)
                await asyncio.gather(*(picture(backend, drawing(m), m) for m in ("old", "new")))
                assert {one.path, two.path} == {str(sd3), str(tmp_path / "next")}
                assert backend.load_now().capacity == 2

    run(work)


def test_with_one_server_the_new_model_waits_for_the_old_ones_pictures(
    server: Server, sd3: Path, tmp_path: Path
) -> None:
    shutil.copytree(sd3, tmp_path / "next")

    async def work() -> None:
        async with sglang(server) as backend:
            await backend.load("old", sd3, SAMPLING)
            server.seconds = 0.3
            begun = asyncio.create_task(picture(backend, drawing("it"), "old"))
            await asyncio.sleep(0.1)
            await backend.load("new", tmp_path / "next", SAMPLING)
            assert begun.done() and begun.result().step == 4
            with pytest.raises(GoneError):
                await picture(backend, drawing("late"), "old")

    run(work)


def test_deadlines_cancels_and_what_cannot_be_promised(server: Server, sd3: Path) -> None:
    async def work() -> None:
        async with sglang(server) as backend:
            await backend.load("new", sd3, SAMPLING)
            server.seconds = 1.0
            with pytest.raises(LateError):
                await picture(backend, drawing("late", deadline=time.monotonic() + 0.1), "new")
            doomed = asyncio.create_task(picture(backend, drawing("doomed"), "new"))
            await asyncio.sleep(0.1)
            backend.cancel("doomed")
            with pytest.raises(BackendError, match="was cancelled"):
                await doomed
            with pytest.raises(RefusedError, match="does not promise"):
                await picture(backend, drawing("it", deterministic=True), "new")
            with pytest.raises(RefusedError, match="multiples of 8"):
                await picture(backend, drawing("it", height=33), "new")
            assert backend.load_now().active == 0

    run(work)


def test_a_server_that_is_not_there(sd3: Path) -> None:
    async def work() -> None:
        backend = SGLang(["http://127.0.0.1:9"])
        with pytest.raises(UnusableError, match="does not answer"):
            await backend.load("new", sd3, SAMPLING)
        await backend.close()

    run(work)
    with pytest.raises(BackendError, match="urls must name a server"):
        SGLang([])
