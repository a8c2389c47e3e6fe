"""The server over the built-in backend: the avatars' model, drawn as the judges draw it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from serving.api import open_backend
from serving.credentials import read_credentials
from tests.serving.world import Running, World, serving
from training.families.drawing import Drawer

BASE = Path("examples/avatars/models/base")
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 64, "width": 64}
PROMPT = "a portrait, short blond hair, blue shirt"


@pytest.fixture(scope="module")
def avatars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = World(tmp_path_factory.mktemp("avatars"))
    world.promote("1", bundle=BASE, sampling=SAMPLING)
    settings = world.settings(backend="serving.engine.backend:BuiltIn", backend_options={"threads": 1})
    with serving(settings, open_backend(settings)) as server:  # type: ignore[arg-type]
        server.wait(state="ready")
        yield server


def pixels(content: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(content)), formats=["PNG"]) as image:
        return np.asarray(image, np.int16)


def test_the_official_client_gets_what_the_judges_would_draw(avatars: Running) -> None:
    client = OpenAI(base_url=f"{avatars.url}/v1", api_key="none", timeout=180)
    answer = client.images.generate(prompt=PROMPT, n=3, extra_body={"seed": 7})
    assert answer.data
    drawer = Drawer(BASE)
    for one, seed in zip(answer.data, (7, 8, 9), strict=True):
        (wanted,) = drawer.draw([PROMPT], [seed], SAMPLING)
        assert np.abs(pixels(str(one.b64_json)) - np.asarray(wanted, np.int16)).max() <= 2
        read = read_credentials(base64.b64decode(str(one.b64_json)))
        assert read and (read.origin.seed, read.origin.version) == (seed, "1")


def test_previews_come_nearer_to_the_picture(avatars: Running) -> None:
    client = OpenAI(base_url=f"{avatars.url}/v1", api_key="none", timeout=180)
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7})
    *previews, last = [pixels(event.b64_json) for event in stream]
    apart = [float(np.abs(preview - last).mean()) for preview in previews]
    assert len(apart) == 2
    assert apart[0] > apart[1]


def test_what_the_model_cannot_draw_is_a_bad_request(avatars: Running) -> None:
    assert avatars.draw(size="63x64").status_code == 400
    assert avatars.draw().status_code == 200


def test_metrics_have_the_engines_stages(avatars: Running) -> None:
    avatars.draw()
    told = avatars.get("/metrics").text
    for stage in ("queue", "text", "steps", "decode", "credentials"):
        assert f'triptych_serving_stage_seconds_count{{stage="{stage}"}}' in told
