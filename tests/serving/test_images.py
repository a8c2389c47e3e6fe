"""The images API, as OpenAI's client and anybody's HTTP see it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from PIL import Image

from serving.credentials import SOURCE, read_credentials
from tests.channel.worlds import MODEL
from tests.serving.world import Running, World, events


def opened(content: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content)), formats=["PNG", "JPEG", "WEBP"])


@pytest.fixture
def client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_the_official_client_draws(client: OpenAI) -> None:
    answer = client.images.generate(model=MODEL, prompt="a portrait, glasses", n=2, extra_body={"seed": 7})
    assert answer.data
    pictures = [opened(str(one.b64_json)) for one in answer.data]
    assert [one.size for one in pictures] == [(64, 64), (64, 64)]
    assert np.asarray(pictures[0]).tobytes() != np.asarray(pictures[1]).tobytes()
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert [one.model_extra for one in answer.data] == [{"seed": 7}, {"seed": 8}]


def test_the_official_client_streams(client: OpenAI) -> None:
    kinds, last = [], ""
    stream = client.images.generate(model=MODEL, prompt="a portrait", stream=True, partial_images=2)
    for event in stream:
        kinds.append(event.type)
        last = event.b64_json
        assert read_credentials(base64.b64decode(last))
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert opened(last).size == (64, 64)


def test_the_official_client_lists_models(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [MODEL, f"{MODEL}@1"]
    assert client.models.retrieve(f"{MODEL}@1").id == f"{MODEL}@1"
    with pytest.raises(NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_kserves_v1_protocol_lists_models(running: Running) -> None:
    assert running.get("/v1/models").json()["models"] == [MODEL, f"{MODEL}@1"]
    told = running.get(f"/v1/models/{MODEL}").json()
    assert (told["name"], told["ready"]) == (MODEL, True)


def test_every_answer_names_model_version_and_digest(running: Running, shared_world: World) -> None:
    answer = running.draw(seed=3)
    named = {"model": MODEL, "version": "1", "digest": shared_world.made["1"].weights}
    assert named.items() <= answer.json().items()
    assert {k: answer.headers[f"x-triptych-{k}"] for k in named} == named
    assert answer.headers["x-request-id"].startswith("req_")
    streamed = running.draw(stream=True, partial_images=1)
    assert all(named.items() <= event.items() for event in events(streamed))
    assert {k: streamed.headers[f"x-triptych-{k}"] for k in named} == named


def test_the_same_seed_draws_the_same_picture_and_credentials_say_how(running: Running) -> None:
    asked = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 2.5, "size": "32x48"}
    one, two = (base64.b64decode(running.draw(**asked).json()["data"][0]["b64_json"]) for _ in "12")
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(c), formats=["PNG"])) for c in (one, two)))
    found = read_credentials(one)
    assert found
    assert found.origin.seed == 5
    wanted = {"num_inference_steps": 3, "guidance_scale": 2.5, "max_sequence_length": 1, "height": 48, "width": 32}
    assert found.origin.sampling == wanted | {"precision": "float32"}
    assert found.origin.step == 3


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_each_format_is_marked_and_signed(running: Running, format: str) -> None:
    more = {} if format == "png" else {"output_compression": 60}
    content = base64.b64decode(running.draw(output_format=format, **more).json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(content), formats=[format]).size == (64, 64)
    assert f'DigitalSourceType="{SOURCE}"'.encode() in content
    found = read_credentials(content)
    assert found
    assert (found.origin.format, found.origin.quality) == (format, more.get("output_compression"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 9}, "n is 9"),
    ({"n": 10**9}, "n is"),
    ({"n": 0}, "n:"),
    ({"n": "2"}, "n:"),
    ({"n": True}, "n:"),
    ({"size": "64"}, "size:"),
    ({"size": "9999x9999"}, "size is 9999"),
    ({"size": "63x64"}, "no multiple of 8"),
    ({"size": "1024\u00d71024"}, "size:"),
    ({"response_format": "url"}, "there is no URL"),
    ({"output_format": "gif"}, "png, jpeg or webp"),
    ({"background": "transparent"}, "transparency"),
    ({"output_compression": 50}, "of jpeg and webp"),
    ({"partial_images": 2}, "stream=true"),
    ({"stream": True, "n": 2}, "one picture"),
    ({"stream": "yes"}, "stream:"),
    ({"num_inference_steps": 101}, "at most 100"),
    ({"guidance_scale": -1}, "guidance_scale:"),
    ({"seed": -1}, "seed:"),
    ({"seed": 2**53}, "seed:"),
    ({"frame_count": 3}, "frame_count: Extra"),
    ({"steps": 3}, "steps: Extra"),
    ({"prompt": ""}, "prompt:"),
    ({"prompt": ["a"]}, "prompt:"),
    ({"prompt": "x" * 4001}, "at most 4000"),
    ({"prompt": None}, "prompt:"),
]


@pytest.mark.parametrize(("asked", "told"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_is_refused_is_told_in_openais_shape(running: Running, asked: dict[str, Any], told: str) -> None:
    answer = running.draw(**{"prompt": "a portrait"} | asked)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_the_official_client_gets_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(prompt="a portrait", size="9999x9999")  # type: ignore[call-overload]
    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    with pytest.raises(APIError, match="no multiple of 8"):
        list(client.images.generate(prompt="a portrait", size="63x64", stream=True))


WITHOUT_EFFECT = {
    "quality": "hd",
    "style": "vivid",
    "moderation": "low",
    "complexity": "high",
    "background": "opaque",
    "user": "somebody",
    "safety_identifier": "hash",
    "response_format": "b64_json",
    "size": "auto",
}


def test_fields_without_effect_change_nothing(running: Running) -> None:
    plain, decorated = running.draw(seed=1), running.draw(seed=1, **WITHOUT_EFFECT)
    pictures = [np.asarray(opened(one.json()["data"][0]["b64_json"])) for one in (plain, decorated)]
    assert np.array_equal(*pictures)


def test_every_field_of_the_official_client_has_a_rule(running: Running) -> None:
    from inspect import signature

    from openai.resources.images import Images

    transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    fields = set(signature(Images.generate).parameters) - transport
    ours = set(running.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]["properties"])
    assert fields - ours == {"frame_count", "frame_duration_ms", "svg"}  # of gif and svg alone
