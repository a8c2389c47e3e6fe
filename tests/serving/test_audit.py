"""From a served picture back to its lineage, and to the same picture."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image
from typer.testing import CliRunner, Result

from components.fine_tune.installed import installed
from components.register.model_folder import write_model_folder
from components.register.register import create, upload
from lineage.digests import digest_path
from lineage.registry import Registry
from pipelines.cli import app
from pipelines.commands.serve import SERVING
from serving.credentials import ContentSigner, Origin, encode, make_content_key
from serving.likeness import note
from tests.audit.world import GATE, MODEL, TERMS, World, draw_pictures
from tests.serving.world import command_line, ready, until

BASE = Path("examples/avatars/models/base")
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 64, "width": 64}
PROMPT = "a portrait, short blond hair"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run, whose candidate is champion."""
    made = World(tmp_path_factory.mktemp("audited"))
    draw_pictures(made.folder / "pictures")
    made.home.open("tests")
    made.home.set_policy(MODEL, TERMS, GATE.model_dump(mode="json"), "for tests")
    made.retrain("run-1", [0, 1, 2, 5], 0.3)
    return made


@pytest.fixture(scope="module")
def signer(world: World) -> ContentSigner:
    return ContentSigner(*make_content_key(world.folder / SERVING / "content"))


@pytest.fixture(scope="module")
def drawn() -> Iterator[Image.Image]:
    from training.families.drawing import Drawer

    yield Drawer(BASE).draw([PROMPT], [7], SAMPLING)[0]


def run(world: World, what: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["audit", str(what), "--work-dir", str(world.folder), *options])


def origin(world: World, version: str = "1", **changes: object) -> Origin:
    told = {"model": "portraits", "version": version, "digest": world.candidates["1"], "seed": 7}
    return Origin.model_validate(told | {"sampling": SAMPLING, "step": 2} | changes)


def served(signer: ContentSigner, image: Image.Image, said: Origin, path: Path) -> Path:
    path.write_bytes(signer.sign(encode(image, said.format, said.quality), said))
    return path


def test_a_picture_leads_to_the_lineage_of_its_version(
    world: World, signer: ContentSigner, drawn: Image.Image, tmp_path: Path
) -> None:
    found = run(world, served(signer, drawn, origin(world), tmp_path / "picture.png"))
    assert found.exit_code == 0, found.output
    assert "what drew it has these weights" in found.output
    assert "version 1 of portraits" in found.output
    assert "whose authority is this work folder's" in found.output
    assert f"digest         {world.candidates['1']}" in found.output


def test_from_the_work_folder_to_a_picture_and_back(world: World, tmp_path: Path) -> None:
    """`triptych serve` on a work folder needs nothing else, and what it draws leads back to the ledger."""
    told = {"TRIPTYCH_SERVE_BACKEND": "tests.serving.backends:Painter"}
    with command_line(tmp_path / "log", "--work-dir", str(world.folder), **told) as (url, _, log):
        until(lambda: ready(url), bool)
        assert requests.get(f"{url}/version", timeout=30).json()["signature"] == "checked"
        asked = {"prompt": PROMPT, "seed": 5, "output_format": "jpeg"}
        answer = requests.post(f"{url}/v1/images/generations", json=asked, timeout=60)
        assert answer.status_code == 200, log.read_text()
    (tmp_path / "picture.jpg").write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    found = run(world, tmp_path / "picture.jpg")
    assert found.exit_code == 0, found.output
    assert "version 1 of portraits: champion" in found.output
    assert run(world, tmp_path / "picture.jpg", "--like").exit_code == 0
    (world.folder / SERVING / "pictures.jsonl").unlink()


def test_a_signer_whom_nobody_here_trusts_proves_nothing(world: World, drawn: Image.Image, tmp_path: Path) -> None:
    strange = ContentSigner(*make_content_key(tmp_path / "keys"))
    found = run(world, served(strange, drawn, origin(world), tmp_path / "picture.png"))
    assert "not proven" in found.output
    assert "whom nobody here vouches for" in found.output


def test_a_picture_that_names_another_version_than_its_weights_does_not_hold(
    world: World, signer: ContentSigner, drawn: Image.Image, tmp_path: Path
) -> None:
    found = run(world, served(signer, drawn, origin(world, "3"), tmp_path / "picture.png"))
    assert found.exit_code == 1
    assert "it names version 3 of portraits" in found.output


def test_a_picture_that_was_changed_is_refused(
    world: World, signer: ContentSigner, drawn: Image.Image, tmp_path: Path
) -> None:
    path = served(signer, drawn, origin(world), tmp_path / "picture.png")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"IDAT") + 40] ^= 1
    path.write_bytes(content)
    found = run(world, path)
    assert found.exit_code == 1
    assert "its content credentials do not hold: assertion.dataHash.mismatch" in found.output


def test_weights_that_no_version_has(world: World, signer: ContentSigner, drawn: Image.Image, tmp_path: Path) -> None:
    said = origin(world, digest=f"tree-sha256:{'9' * 64}")
    found = run(world, served(signer, drawn, said, tmp_path / "picture.png"))
    assert found.exit_code == 2


@pytest.fixture(scope="module")
def avatars(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The avatars' base model as a version in the registry; gives the digest of its weights."""
    folder, digest = tmp_path_factory.mktemp("model"), digest_path(BASE)
    store = Registry(world.store.tracking_uri, "avatars")
    write_model_folder(folder, "avatars", digest, SAMPLING, "2026-11-26T10:00:00+00:00", installed())
    mlflow_run = store.open_run("run-avatars")
    create(store, mlflow_run, upload(store, mlflow_run, folder, BASE, {}, "candidate-0"), {}, "")
    return digest


@pytest.mark.parametrize(("format", "quality"), [("png", None), ("jpeg", 80)])
def test_it_is_drawn_again_and_compared(
    world: World,
    signer: ContentSigner,
    avatars: str,
    drawn: Image.Image,
    tmp_path: Path,
    format: str,
    quality: int | None,
) -> None:
    said = origin(world, "1", model="avatars", digest=avatars, format=format, quality=quality)
    path = served(signer, drawn, said, tmp_path / f"picture.{format}")
    found = run(world, path, "--redraw", "--prompt", PROMPT)
    assert (found.exit_code, found.stdout) == (0, "the same picture, pixel by pixel\n"), found.output
    other = run(world, path, "--redraw", "--prompt", "a portrait, long black hair, glasses")
    assert other.exit_code == 1
    assert "NOT the same" in other.output


def test_what_cannot_be_drawn_again(
    world: World, signer: ContentSigner, avatars: str, drawn: Image.Image, tmp_path: Path
) -> None:
    said = origin(world, "1", model="avatars", digest=avatars)
    preview = served(signer, drawn, said.model_copy(update={"step": 1}), tmp_path / "preview.png")
    assert "is a preview" in run(world, preview, "--redraw", "--prompt", PROMPT).output
    strange = served(signer, drawn, said.model_copy(update={"digest": world.candidates["1"]}), tmp_path / "other.png")
    assert "have digest" in run(world, strange, "--redraw", "--prompt", PROMPT).output
    drawn.save(tmp_path / "bare.png")
    assert "needs a picture with content credentials" in run(world, tmp_path / "bare.png", "--redraw").output


def test_a_picture_without_credentials_is_found_by_its_likeness(
    world: World, drawn: Image.Image, tmp_path: Path
) -> None:
    drawn.save(tmp_path / "stripped.jpg", quality=60)
    missing = run(world, tmp_path / "stripped.jpg", "--like")
    assert missing.exit_code == 2
    assert "there is no log of pictures" in missing.output
    (world.folder / SERVING).mkdir(exist_ok=True)
    note(world.folder / SERVING / "pictures.jsonl", drawn, "req_1", origin(world))
    found = run(world, tmp_path / "stripped.jpg", "--like")
    assert found.exit_code == 0
    assert f"version 1 of portraits ({world.candidates['1']}), seed 7, request req_1" in found.output
    assert run(world, Path("pyproject.toml"), "--like").exit_code == 2
