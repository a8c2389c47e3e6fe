"""Too many, too late, gone: what the server does when callers, workers or it itself end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import InternalServerError, OpenAI, RateLimitError

from tests.channel.worlds import MODEL
from tests.serving.backends import Painter, Slow, Stuck
from tests.serving.world import ROOT, World, command_line, events, ready, serving, until


@pytest.fixture
def one(world: World) -> World:
    world.promote("1")
    return world


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(one: World) -> None:
    with serving(one.settings(most_waiting=2), Slow()) as server, ThreadPoolExecutor(12) as pool:
        server.wait(version="1")
        answers = list(pool.map(lambda _: server.draw(), range(12)))
        told = [answer.status_code for answer in answers]
        assert set(told) == {200, 429}
        assert told.count(200) >= 6
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "queue_full"
                assert 0 < int(answer.headers["retry-after-ms"]) < 60_000 * 1.25
        until(lambda: server.app.state.service.pending, lambda pending: pending == 0)


def test_more_than_fits_is_never_admitted(one: World) -> None:
    with serving(one.settings(most_waiting=0)) as server:
        server.wait(version="1")
        assert server.draw(n=5).status_code == 429
        assert server.draw(n=4).status_code == 200


def test_the_retry_storm_of_the_official_client_ends(one: World) -> None:
    """Ten clients at a server for four: each is drawn for in the end, because each waits as it is told."""
    with serving(one.settings(most_waiting=0), Slow()) as server, ThreadPoolExecutor(10) as pool:
        server.wait(version="1")
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)
        drawn = pool.map(lambda seed: client.images.generate(prompt="a", extra_body={"seed": seed}), range(10))
        assert all(answer.data for answer in drawn)
        impatient = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def once(_: int) -> bool:
            try:
                return bool(impatient.images.generate(prompt="a"))
            except RateLimitError:
                return False

        assert not all(pool.map(once, range(10)))


def test_a_caller_who_hangs_up_frees_the_place(one: World) -> None:
    with serving(one.settings(most_waiting=0), Slow()) as server:
        server.wait(version="1")
        for stream in (False, True):
            with pytest.raises(requests.RequestException):
                asked = {"prompt": "a", "num_inference_steps": 100, "stream": stream, "partial_images": 0}
                found = requests.post(f"{server.url}/v1/images/generations", json=asked, timeout=0.5, stream=stream)
                found.content  # noqa: B018
            until(lambda: server.app.state.service.pending, lambda pending: pending == 0)
            until(lambda: server.backend.active, lambda active: active == 0)
        assert not server.backend.drawn
        assert server.draw().status_code == 200


def test_one_picture_that_fails_frees_its_siblings(one: World) -> None:
    class Third(Painter):
        async def _steps(self, model: str, drawing: Any) -> Any:
            if drawing.id.split("-")[-2] == "2":
                self.dead = True
            async for drawn in super()._steps(model, drawing):
                yield drawn

    with serving(one.settings(), Third()) as server:
        server.wait(version="1")
        assert server.draw(n=4).status_code == 503
        until(lambda: server.backend.active, lambda active: active == 0)


def test_a_worker_that_dies_is_told_and_nobody_hangs(one: World) -> None:
    with serving(one.settings(), Slow()) as server, ThreadPoolExecutor(8) as pool:
        server.wait(version="1")
        drawn = [pool.submit(server.draw, num_inference_steps=50) for _ in range(6)]
        streamed = pool.submit(server.draw, num_inference_steps=50, stream=True)
        until(lambda: server.backend.active, lambda active: active == 4)
        server.backend.dead = True
        for answer in drawn:
            assert answer.result().status_code == 503
            assert answer.result().json()["error"]["message"] == "the model cannot draw now; try again"
        assert events(streamed.result())[-1]["error"]["code"] == "not_ready"
        server.backend.dead = False
        assert server.draw().status_code == 200


def test_a_backend_that_lost_its_model_is_given_it_again(one: World) -> None:
    with serving(one.settings()) as server:
        server.wait(version="1")
        server.backend.weights.clear()
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5)
        assert client.images.generate(prompt="a").data


def test_a_backend_that_says_nothing_any_more_is_given_up(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.service.GRACE", 0.2)
    with serving(one.settings(deadline=0.3), Stuck()) as server:
        server.wait(version="1")
        answer = server.draw()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert events(server.draw(stream=True))[-1]["error"]["code"] == "deadline_exceeded"
        until(lambda: server.app.state.service.pending, lambda pending: pending == 0)


def test_a_deadline_frees_the_place(one: World) -> None:
    with serving(one.settings(deadline=0.5), Slow()) as server:
        server.wait(version="1")
        assert server.draw(num_inference_steps=50).status_code == 504
        until(lambda: server.backend.active, lambda active: active == 0)


def test_the_api_key_is_asked_for_where_one_is_configured(one: World, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    with serving(one.settings(api_key=key)) as server:
        server.wait(version="1")
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic 0123456789abcdef"}):
            answer = server.get("/v1/models", headers=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert requests.post(f"{server.url}/wake", timeout=10).status_code == 401
        client = OpenAI(base_url=f"{server.url}/v1", api_key="0123456789abcdef")
        assert client.images.generate(prompt="a").data
        for path in ("/health/ready", "/metrics", "/version", "/", "/openapi.json"):
            assert server.get(path).ok


def test_an_api_key_that_is_short_or_gone_is_refused_at_the_start(one: World, tmp_path: Path) -> None:
    from lineage.digests import LineageError
    from serving.api import create_app

    (tmp_path / "short").write_text("secret")
    for name, told in (("short", "shorter than 16"), ("gone", "cannot be read")):
        with pytest.raises(LineageError, match=told):
            create_app(one.settings(api_key=tmp_path / name), Painter())  # type: ignore[arg-type]


STRANGE: list[tuple[dict[str, Any], str]] = [
    ({"backend": "nowhere"}, "there is no backend 'nowhere'"),
    ({"backend": "serving.nowhere:Class"}, "cannot be loaded"),
    ({"backend": "serving.engine.backend:BuiltIn", "backend_options": {"precision": "int1"}}, "precision"),
    ({"backend": "serving.engine.backend:BuiltIn", "backend_options": {"colour": 1}}, "colour"),
    ({"content_key": Path("nowhere"), "content_chain": Path("nowhere")}, "cannot sign"),
]


@pytest.mark.parametrize(("told", "why"), STRANGE, ids=str)
def test_what_cannot_be_used_is_told_at_the_start(one: World, told: dict[str, Any], why: str) -> None:
    from lineage.digests import LineageError
    from serving.api import create_app

    with pytest.raises(LineageError, match=why):
        create_app(one.settings(**told))


def test_metrics_tell_of_stages_swaps_and_staleness(one: World) -> None:
    with serving(one.settings()) as server:
        server.wait(version="1")
        server.draw(stream=True, partial_images=1)
        told = server.get("/metrics").text
        for line in (
            'triptych_serving_stage_seconds_count{stage="credentials"} 1.0',
            'triptych_serving_pictures_total{kind="picture",version="1"} 1.0',
            'triptych_serving_pictures_total{kind="preview",version="1"} 1.0',
            'triptych_serving_swaps_total{result="done"} 1.0',
            "triptych_serving_staleness_seconds 0.0",
            "triptych_serving_batch_occupancy",
            'triptych_serving_request_seconds_count{route="/v1/images/generations",status="200"} 1.0',
        ):
            assert line in told
        assert f'model="{MODEL}",version="1"' in told


# As a process of its own


@pytest.fixture
def process(one: World) -> Any:
    """`triptych serve` with a backend that takes its time; gives its address, the process and its log."""
    yield from start(one)


def start(one: World, **more: str) -> Any:
    settings = one.settings()
    told = {"TRIPTYCH_SERVE_BACKEND": "tests.serving.backends:Slow", "TRIPTYCH_SERVE_STATE": str(settings.state)}
    asked = ["--channel", settings.channel, "--root", str(settings.root)]
    with command_line(one.folder / "server.log", *asked, **told, **more) as running:
        yield running


def test_sigterm_lets_requests_finish_and_logs_no_prompt(process: Any) -> None:
    url, ran, log = process
    until(lambda: ready(url), bool)
    with ThreadPoolExecutor(1) as pool:
        asked = {"prompt": "a very private prompt", "num_inference_steps": 10}
        drawn = pool.submit(requests.post, f"{url}/v1/images/generations", json=asked, timeout=60)
        time.sleep(0.6)
        ran.send_signal(signal.SIGTERM)
        assert drawn.result().status_code == 200
    assert ran.wait(30) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.read_text().splitlines() if not line.startswith("drawing with")]
    assert "private" not in log.read_text()
    request = next(line for line in lines if line["event"] == "request")
    assert request["request"].startswith("req_")
    assert request["digest"].startswith("tree-sha256:")
    assert any(line["event"] == "draining" for line in lines)


def test_before_it_ends_it_says_so_and_draws_for_nobody_new(one: World) -> None:
    for url, ran, _ in start(one, TRIPTYCH_SERVE_LEAVE="2"):
        until(lambda: ready(url), bool)  # noqa: B023
        ran.send_signal(signal.SIGTERM)
        until(lambda: ready(url), lambda is_ready: not is_ready)  # noqa: B023
        answer = requests.post(f"{url}/v1/images/generations", json={"prompt": "a"}, timeout=10)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        ran.wait(30)


def test_the_server_loads_no_database_and_no_mlflow() -> None:
    told = "import sys, serving.run, serving.api; print({'mlflow', 'sqlalchemy', 'torch'} & {*sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "set()"


def test_what_the_official_client_is_told_when_nothing_draws(world: World) -> None:
    with serving(world.settings()) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(InternalServerError) as caught:
            client.images.generate(prompt="a")
        assert caught.value.status_code == 503
