"""Features on disk: kept over a kill where they fit, checked when read, no more than there is room for."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.encode_features import pictures
from components.encode_features.pictures import encode_pictures
from tests.training.conftest import World
from tests.training.tiny import save_validated
from tests.training.tiny_families import save_flux, save_qwen_image
from training.encode import encoders, info, store
from training.encode.encoders import Encoders
from training.encode.features import Features
from training.encode.info import features_digest, made_of, part_folder, read_info
from training.encode.pictures import open_picture
from training.errors import TrainingError
from training.families import family_of
from training.families.sd3 import StableDiffusion3
from training.settings import ReplaySettings, SupervisionSettings, TrainingSettings
from training.teach import phrases
from training.teach.structure import StructureModel
from training.teach.supervision import Phase
from training.teach.teacher import Teacher
from training.train.model import Batches, SupervisedTransformer

ENCODE = """
import sys
from pathlib import Path
from components.encode_features import pictures
from training.encode import encoders, store
from training.settings import ReplaySettings, TrainingSettings

store.SEGMENT_ROWS = encoders.BATCH = 4
settings, validated, features, cache, pictures_before_the_kill = sys.argv[1:]
left, read = int(pictures_before_the_kill), pictures.open_picture

def open_picture(row):
    global left
    left -= 1
    if left < 0:
        print("now", flush=True)
        sys.stdin.read()
    return read(row)

pictures.READERS, pictures.open_picture = 1, open_picture
pictures.encode_pictures(TrainingSettings.model_validate_json(settings), *map(Path, (validated, features, cache)))
"""


PARTS = ["latents", "strings", "structure", "teacher", "text"]


def test_a_kill_costs_the_segment_it_fell_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    arguments = [world.settings().model_dump_json(), str(world.validated), str(tmp_path / "first"), str(cache), "11"]
    command = [sys.executable, "-c", ENCODE, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "now\n" for line in process.stdout), "it reads the 12th picture, in the third segment"
        os.kill(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_ino for path in cache.rglob("*.safetensors")}
    assert sorted({path.parent.name.partition("-")[0] for path in kept}) == PARTS
    assert sum(path.parent.name.startswith("latents") for path in kept) == 2
    monkeypatch.setattr(store, "SEGMENT_ROWS", 4)
    monkeypatch.setattr(encoders, "BATCH", 4)
    _, read = _encoded(cache, world.settings(), world.validated, tmp_path / "second", monkeypatch)
    assert read == 24 - 8, "finished segments were taken as they are"
    assert {path: path.stat().st_ino for path in kept} == kept
    encode_pictures(world.settings(), world.validated, tmp_path / "uninterrupted")
    assert features_digest(tmp_path / "second") == features_digest(tmp_path / "uninterrupted")


def _spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_a_kept_segment_that_was_changed_is_made_again(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    for path in cache.glob("latents-*/*.safetensors"):
        _spoil(path)
    encode_pictures(world.settings(), world.validated, tmp_path / "second", cache)
    assert features_digest(tmp_path / "second") == features_digest(world.features)


SPOILT: dict[str, Callable[[Path], Any]] = {
    "a row": lambda folder: _spoil(next(folder.glob("teacher/*.safetensors"))),
    "a header": lambda folder: next(folder.glob("text/*.safetensors")).write_bytes(b"{}"),
    "a segment that is gone": lambda folder: next(folder.glob("latents/*.safetensors")).unlink(),
    "captions": lambda folder: (folder / "corpus.json").write_text((folder / "corpus.json").read_text() + " "),
}


@pytest.mark.parametrize("what", SPOILT)
def test_features_that_are_not_what_was_encoded_are_refused(world: World, tmp_path: Path, what: str) -> None:
    shutil.copytree(world.features, tmp_path / "features")
    features_digest(tmp_path / "features")
    SPOILT[what](tmp_path / "features")
    with pytest.raises(TrainingError, match=r"is not what was encoded|lacks the row"):
        features_digest(tmp_path / "features")


def test_rows_of_another_order_have_another_digest(world: World, tmp_path: Path) -> None:
    other = save_validated(tmp_path / "validated", [*world.rows[1:], world.rows[0]])
    encode_pictures(world.settings(), other, tmp_path / "features")
    assert read_info(tmp_path / "features").rows["latents"] != read_info(world.features).rows["latents"]


def test_a_new_picture_encodes_nothing_else_and_gives_what_encoding_all_gives(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fewer = save_validated(tmp_path / "validated", world.rows[:-1])
    assert _encoded(cache, world.settings(), fewer, tmp_path / "first", monkeypatch) == (PARTS, 23)
    assert _encoded(cache, world.settings(), world.validated, tmp_path / "second", monkeypatch) == ([], 1)
    assert features_digest(tmp_path / "second") == features_digest(world.features)
    assert _encoded(cache, world.settings(), fewer, tmp_path / "third", monkeypatch) == ([], 0)
    assert features_digest(tmp_path / "third") == features_digest(tmp_path / "first")


def test_nothing_new_loads_no_model(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    for loads in ("pipeline", "teacher_model", "structure_model"):
        monkeypatch.setattr(Encoders, loads, property(lambda self: pytest.fail("a model was loaded")))
    encode_pictures(world.settings(), world.validated, tmp_path / "second", cache)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = shutil._ntuple_diskusage(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    with pytest.raises(TrainingError, match=r"features would take about .*latents 53 KB, .*has 5 KB free"):
        encode_pictures(world.settings(), world.validated, tmp_path / "features")
    assert not list((tmp_path / "features").iterdir())
    assert "features of 24 pictures take about" in capsys.readouterr().out


def test_only_rows_that_are_missing_need_room(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    free = shutil._ntuple_diskusage(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    encode_pictures(world.settings(), world.validated, tmp_path / "again", cache)
    with pytest.raises(TrainingError, match=r"cache has 5 KB free"):
        encode_pictures(world.settings(cache_precision="fp16"), world.validated, tmp_path / "second", cache)


def test_a_features_folder_without_room_for_copies_of_kept_rows_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    free = shutil._ntuple_diskusage(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(TrainingError, match=r"features would take about .* has 5 KB free"):
        encode_pictures(world.settings(), world.validated, tmp_path / "features", cache)
    assert not list((tmp_path / "features").iterdir())


def test_the_estimate_is_what_is_written(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    encode_pictures(world.settings(), world.validated, tmp_path / "features")
    size = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.safetensors"))
    assert size / 1000 == pytest.approx(_told(capsys), rel=0.05)


def test_the_estimate_holds_where_rows_are_as_long_as_their_text(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = save_qwen_image(tmp_path / "base")
    plain = {"base_model": base, "buckets": ((32, 32),), "supervision": SupervisionSettings(enabled=False)}
    rows = [world.rows[0] | {"text": "a portrait with a beard " * 20}, *world.rows[1:]]
    encode_pictures(world.settings(**plain), save_validated(tmp_path / "validated", rows), tmp_path / "features")
    size = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.safetensors"))
    assert size / 1000 == pytest.approx(_told(capsys), rel=0.2)


def _told(capsys: pytest.CaptureFixture[str]) -> float:
    """The estimate that was printed, in KB."""
    return float(capsys.readouterr().out.partition("about ")[2].partition(" KB")[0])


def _losses(world: World, settings: TrainingSettings, folder: Path) -> list[float]:
    features, family = Features(folder, settings), family_of(world.base)
    model = SupervisedTransformer(family, features, settings)
    batches = Batches(features, settings, family, rank=0, world=1)
    with torch.no_grad():
        return [float(model(batches[step], Phase(0.5, False, 0.1)).loss) for step in range(3)]


@pytest.mark.parametrize("cached", [("latents", "text"), ("teacher",), ()])
def test_what_is_not_cached_is_computed_with_equal_losses(
    world: World, tmp_path: Path, cached: tuple[str, ...]
) -> None:
    settings = world.settings(processes=1, cached=cached, replay=ReplaySettings())
    info = encode_pictures(settings, world.validated, tmp_path / "features")
    assert {"latents", "text", "structure"} & info.rows.keys() == set(cached) - {"teacher"}
    everything = world.settings(processes=1, replay=ReplaySettings())
    there = _losses(world, everything, world.features)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-5)


def test_a_share_of_any_size_goes_through_frozen_models_a_few_at_a_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings(processes=1, cached=(), batch_size=8, replay=ReplaySettings())
    encode_pictures(settings, world.validated, tmp_path / "features")
    kept = world.settings(processes=1, batch_size=8, replay=ReplaySettings())
    there, seen = _losses(world, kept, world.features), dict[str, list[int]]()

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def watched(self: Any, *asked: Any) -> Any:
            seen.setdefault(name, []).append(len(asked[1] if owner is StableDiffusion3 else asked[0]))
            return method(self, *asked)

        monkeypatch.setattr(owner, name, watched)

    watch(StableDiffusion3, "posterior")
    watch(StableDiffusion3, "encode_captions")
    watch(Teacher, "patch_features")
    watch(StructureModel, "structure")
    monkeypatch.setattr(encoders, "BATCH", 3)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-5)
    assert seen.pop("patch_features") == [1] + 3 * [3, 3, 2], "one for its grid, and three steps"
    assert seen == dict.fromkeys(["posterior", "encode_captions", "structure"], 3 * [3, 3, 2])


def test_half_precision_halves_latents_and_text(world: World, tmp_path: Path) -> None:
    settings = world.settings(processes=1, cache_precision="fp16", replay=ReplaySettings())
    encode_pictures(settings, world.validated, tmp_path / "features")
    places = [folder / "latents" for folder in (tmp_path / "features", world.features)]
    half, full = (sum(path.stat().st_size for path in place.glob("*.safetensors")) for place in places)
    assert half < 0.6 * full
    there = _losses(world, world.settings(processes=1, replay=ReplaySettings()), world.features)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-2)


def test_a_value_that_half_precision_cannot_hold_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = StableDiffusion3.posterior
    monkeypatch.setattr(StableDiffusion3, "posterior", lambda *asked: tuple(t * 1e6 for t in posterior(*asked)))
    encode_pictures(world.settings(cached=("latents",)), world.validated, tmp_path / "whole")
    settings = world.settings(cached=("latents",), cache_precision="fp16")
    with pytest.raises(TrainingError, match=r"latents \(mean\) cannot be kept in float16: values reach"):
        encode_pictures(settings, world.validated, tmp_path / "half")


def _encoded(
    cache: Path, settings: TrainingSettings, validated: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], int]:
    """The parts of which nothing was kept in ``cache`` that fits ``settings``, and how many pictures were read."""
    kept = set(cache.iterdir()) if cache.exists() else set()
    read: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "open_picture", lambda row: read.append(row) or open_picture(row))
        encode_pictures(settings, validated, folder, cache)
    return sorted(path.name.partition("-")[0] for path in set(cache.iterdir()) - kept), len(read)


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ("training.encode.encoders", PARTS),
        ("training.families.family", ["latents", "text"]),
        ("training.families.sd3", ["latents", "text"]),
        ("training.teach.teacher", ["strings", "structure", "teacher"]),
        ("training.teach.structure", ["structure"]),
        ("training.families.flux", []),
        ("training.families.drawing", []),
        ("training.encode.encoding", []),
        ("training.launch.watching", []),
        ("training.train.loop", []),
        ("torch", PARTS),
        ("diffusers", ["latents", "text"]),
        ("transformers", ["strings", "structure", "teacher", "text"]),
        ("mlflow", []),
    ],
)
def test_code_and_packages_encode_anew_only_what_they_decide(
    world: World, monkeypatch: pytest.MonkeyPatch, changed: str, anew: list[str]
) -> None:
    settings, code, version = world.settings(), info.code_digest, info.version
    made = made_of(settings, "sha256:0")
    before = {part: part_folder(part, made, settings) for part in PARTS}
    monkeypatch.setattr(info, "code_digest", lambda *names: code(*names) + "x" * (changed in names))
    monkeypatch.setattr(info, "version", lambda name: version(name) + "x" * (changed == name))
    assert [part for part in PARTS if part_folder(part, made, settings) != before[part]] == anew


def test_other_strings_of_the_same_captions_encode_only_what_is_new(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    monkeypatch.setattr(phrases, "_PUNCTUATION", re.compile(";"))
    assert _encoded(cache, world.settings(), world.validated, tmp_path / "second", monkeypatch) == ([], 0)
    encode_pictures(world.settings(), world.validated, tmp_path / "without")
    assert features_digest(tmp_path / "second") == features_digest(tmp_path / "without")


def test_another_precision_keeps_what_it_does_not_decide(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, half = tmp_path / "cache", world.settings(cache_precision="fp16")
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    assert _encoded(cache, half, world.validated, tmp_path / "second", monkeypatch)[0] == ["latents", "text"]


def test_another_length_of_captions_encodes_no_picture_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, base = tmp_path / "cache", save_flux(tmp_path / "base")
    short, long = (
        world.settings(base_model=base, buckets=((32, 32),), max_sequence_length=tokens) for tokens in (16, 64)
    )
    encode_pictures(short, world.validated, tmp_path / "first", cache)
    assert _encoded(cache, long, world.validated, tmp_path / "second", monkeypatch) == (["text"], 0)


def test_places_of_pictures_are_kept_only_where_training_reads_them(world: World, tmp_path: Path) -> None:
    assert "pictures" not in json.loads((world.features / "corpus.json").read_text())
    encode_pictures(world.settings(cached=("latents",)), world.validated, tmp_path / "features")
    assert len(json.loads((tmp_path / "features" / "corpus.json").read_text())["pictures"]) == 24


def test_a_node_hashes_features_once_and_its_training_processes_do_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.features, tmp_path / "features")
    hashed: list[Path] = []
    monkeypatch.setattr(info, "check_segment", hashed.append)
    features_digest(tmp_path / "features")
    segments = len(hashed)
    features_digest(tmp_path / "features")
    features = Features(tmp_path / "features", world.settings())
    assert features.latents([0, 5]) and features.conditioning([0, 5], [False, True]) and features.target([0, 5])
    assert segments == len(hashed) == 5
