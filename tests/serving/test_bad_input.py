"""Whatever a caller sends: an answer in OpenAI's shape, no traceback, and a server that goes on."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.world import Running, World, serving

PATH = "/v1/images/generations"
JSON = {"content-type": "application/json"}


def post(server: Running, body: bytes | str, headers: dict[str, str] = JSON) -> requests.Response:
    return requests.post(server.url + PATH, data=body, headers=headers, timeout=60)


def is_told(answer: requests.Response, status: int) -> None:
    assert answer.status_code == status, answer.text[:300]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


BODIES: dict[str, bytes | str] = {
    "nothing": b"",
    "no json": b"{prompt: a}",
    "half": b'{"prompt": "a',
    "a list": b"[]",
    "null": b"null",
    "no utf-8": b'{"prompt": "\xff\xfe"}',
    "half a surrogate": rb'{"prompt": "\ud800"}',
    "NaN": '{"prompt": "a", "guidance_scale": NaN}',
    "infinity": '{"prompt": "a", "guidance_scale": Infinity}',
    "an overflow": '{"prompt": "a", "guidance_scale": 1e999}',
    "a huge number": '{"prompt": "a", "n": ' + "9" * 5000 + "}",
    "a huge seed": '{"prompt": "a", "seed": ' + "9" * 400 + "}",
    "deep": '{"prompt": ' + "[" * 20000 + "]" * 20000 + "}",
    "a prompt of objects": '{"prompt": {"$gt": ""}}',
    "a long unknown name": json.dumps({"prompt": "a", "x" * 10000: 1}),
    "another width of digits": json.dumps({"prompt": "a", "size": "６４x６４"}),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_request(running: Running, name: str) -> None:
    is_told(post(running, BODIES[name]), 400)


def test_a_prompt_of_a_megabyte(running: Running) -> None:
    is_told(post(running, json.dumps({"prompt": "x" * 2**20})), 413)


def test_a_body_without_end_is_cut_off(running: Running) -> None:
    def chunks() -> Any:
        for _ in range(1000):
            yield b"x" * 1000

    with suppress(requests.ConnectionError):  # the server may hang up before all was sent, which is as good
        is_told(requests.post(running.url + PATH, data=chunks(), headers=JSON, timeout=60), 413)


def test_another_content_type(running: Running) -> None:
    is_told(post(running, json.dumps({"prompt": "a"}), {"content-type": "text/plain"}), 400)


UNUSUAL = ["\x00", "🦄" * 100, "\u202eزيت\u202c", "e\u0301" * 500, "\ufeff", " ", "\n\r\t", "<script>", "%s%n", "../.."]


@pytest.mark.parametrize("prompt", UNUSUAL, ids=ascii)
def test_unusual_prompts_are_drawn(running: Running, prompt: str) -> None:
    assert running.draw(prompt).status_code == 200


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/../api.py", "/page.js/x", "/v1/models/a%2Fb", "/%00"])
def test_paths_that_are_not_there(running: Running, path: str) -> None:
    is_told(running.get(path), 404)


def test_methods_that_are_not_there(running: Running) -> None:
    answer = requests.put(running.url + PATH, timeout=10)
    is_told(answer, 405)
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("id", ["a\u00e4".encode().decode("latin-1"), "x" * 65, "a b", '"}', ""])
def test_a_request_id_that_is_none_is_replaced(running: Running, id: str) -> None:
    answer = running.get("/version", headers={"x-request-id": id})
    assert answer.headers["x-request-id"].startswith("req_")
    assert running.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_bytes_that_are_no_http(running: Running) -> None:
    host = urlsplit(running.url)
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n", b"\r\n\r\n\x00"):
        with socket.create_connection((str(host.hostname), int(host.port or 0)), timeout=10) as line:
            line.sendall(rubbish)
            line.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in line.recv(65536)
    assert running.get("/health/live").ok


def test_an_error_nobody_expected_is_told_without_its_text(world: World, caplog: pytest.LogCaptureFixture) -> None:
    from tests.serving.backends import Painter

    class Broken(Painter):
        def picture(self, *_: Any) -> Any:
            raise ZeroDivisionError("the secret prompt")

    world.promote("1")
    with serving(world.settings(), Broken()) as server:
        server.wait(version="1")
        answer = server.draw("the secret prompt")
        is_told(answer, 500)
        streamed = server.draw("the secret prompt", stream=True)
        assert "secret" not in answer.text + streamed.text
        assert server.get("/health/live").ok


def test_the_openapi_document_says_400_where_others_say_422(running: Running) -> None:
    told = running.get("/openapi.json").json()
    answers = told["paths"][PATH]["post"]["responses"]
    assert "422" not in running.get("/openapi.json").text
    assert {"200", "400", "401", "410", "413", "429", "503", "504"} <= answers.keys()
    assert {"application/json", "text/event-stream"} <= answers["200"]["content"].keys()
    assert "ImageRequest" in told["components"]["schemas"]


def test_the_openapi_document_holds(running: Running) -> None:
    """schemathesis asks each operation of the document for what it allows, and for what it does not."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    checks: list[Any] = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            def ask(case: Any) -> None:
                nonlocal tried
                tried += 1
                answer = case.call_and_validate(checks=checks)
                assert "Traceback" not in answer.text

            try:
                ask()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # an operation that takes nothing can be asked for nothing wrong
    assert tried > 50
    assert running.draw().ok
