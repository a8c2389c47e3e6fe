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
from pathlib import Path
from typing import Any

import pytest
import torch

from components.encode_features.pictures import encode_pictures
from lineage.digests import digest_path
from tests.training.conftest import World
from tests.training.tiny import save_validated
from tests.training.tiny_families import save_flux, save_qwen_image
from training.encode import encoding, frozen
from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.families.family import Encoders
from training.settings import SupervisionSettings, TrainingSettings
from training.teach import phrases
from training.teach.structure import StructureModel
from training.teach.supervision import Phase
from training.teach.teacher import Teacher
from training.train.model import Batches, SupervisedTransformer

ENCODE = """
import sys
from pathlib import Path
from components.encode_features import pictures
from training.encode import encoding
from training.settings import TrainingSettings

encoding.SHARD_ROWS = 4
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


def test_a_kill_costs_the_shard_it_fell_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    arguments = [world.settings().model_dump_json(), str(world.validated), str(tmp_path / "first"), str(cache), "11"]
    command = [sys.executable, "-c", ENCODE, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "now\n" for line in process.stdout), "it reads the 12th picture, in the third shard"
        os.kill(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_ino for path in cache.rglob("*.safetensors")}
    assert {path.parent.name.partition("-")[0] for path in kept} == {
        "latents",
        "text",
        "strings",
        "teacher",
        "structure",
    }
    assert sum(path.parent.name.startswith("latents") for path in kept) == 2
    monkeypatch.setattr(encoding, "SHARD_ROWS", 4)
    encode_pictures(world.settings(), world.validated, tmp_path / "second", cache)
    assert {path: path.stat().st_ino for path in kept} == kept, "finished shards were taken as they are"
    encode_pictures(world.settings(), world.validated, tmp_path / "uninterrupted")
    assert digest_path(tmp_path / "second") == digest_path(tmp_path / "uninterrupted")


def test_a_kept_shard_that_was_changed_is_made_again(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    for path in cache.glob("latents-*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    encode_pictures(world.settings(), world.validated, tmp_path / "second", cache)
    assert digest_path(tmp_path / "second") == digest_path(world.features)


def test_a_shard_is_checked_when_it_is_read(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.features, tmp_path / "features")
    path = tmp_path / "features" / "teacher-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    features = Features(tmp_path / "features", world.settings())
    features.latents([0])
    with pytest.raises(TrainingError, match=r"teacher-00000\.safetensors is not what was encoded"):
        features.batch([0], [False])


def test_a_disk_without_room_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = shutil._ntuple_diskusage(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    with pytest.raises(TrainingError, match=r"features would take about .* \(latents 49 KB, .*has 5 KB free"):
        encode_pictures(world.settings(), world.validated, tmp_path / "features")
    assert not list((tmp_path / "features").iterdir())
    assert "features of 24 pictures take about" in capsys.readouterr().out


def test_only_kept_shards_that_fit_are_counted_as_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    free = shutil._ntuple_diskusage(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    encode_pictures(world.settings(), world.validated, tmp_path / "again", cache)
    other = save_validated(tmp_path / "validated", world.rows[:-1])
    with pytest.raises(TrainingError, match=r"cache has 5 KB free"):
        encode_pictures(world.settings(), other, tmp_path / "second", cache)


def test_a_features_folder_without_room_for_copies_of_kept_shards_is_refused(
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
    size = sum(path.stat().st_size for path in (tmp_path / "features").glob("*.safetensors"))
    assert size / 1000 == pytest.approx(_told(capsys), rel=0.05)


def test_the_estimate_holds_where_texts_are_padded_to_the_longest(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = save_qwen_image(tmp_path / "base")
    plain = {"base_model": base, "buckets": ((32, 32),), "supervision": SupervisionSettings(enabled=False)}
    rows = [world.rows[0] | {"text": "a portrait with a beard " * 20}, *world.rows[1:]]
    encode_pictures(world.settings(**plain), save_validated(tmp_path / "validated", rows), tmp_path / "features")
    size = sum(path.stat().st_size for path in (tmp_path / "features").glob("*.safetensors"))
    assert size / 1000 == pytest.approx(_told(capsys), rel=0.05)


def _told(capsys: pytest.CaptureFixture[str]) -> float:
    """The estimate that was printed, in KB."""
    return float(capsys.readouterr().out.partition("about ")[2].partition(" KB")[0])


def _losses(world: World, settings: TrainingSettings, folder: Path) -> list[float]:
    features, family = Features(folder, settings), family_of(world.base)
    model = SupervisedTransformer(family, features, settings)
    batches = Batches(features, settings, family, rank=0, world=1)
    with torch.no_grad():
        return [float(model(batches[step], Phase(0.5, False, 0.1)).total) for step in range(3)]


@pytest.mark.parametrize("cached", [("latents", "text"), ("teacher",), ()])
def test_what_is_not_cached_is_computed_with_equal_losses(
    world: World, tmp_path: Path, cached: tuple[str, ...]
) -> None:
    settings = world.settings(processes=1, cached=cached)
    info = encode_pictures(settings, world.validated, tmp_path / "features")
    assert {"latents", "text", "structure"} & info.parts.keys() == set(cached) - {"teacher"}
    everything = world.settings(processes=1)
    there = _losses(world, everything, world.features)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-5)


def test_a_share_of_any_size_goes_through_frozen_models_a_few_at_a_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings(processes=1, cached=(), batch_size=8)
    encode_pictures(settings, world.validated, tmp_path / "features")
    there, seen = _losses(world, world.settings(processes=1, batch_size=8), world.features), dict[str, list[int]]()

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def watched(self: Any, some: Any, *more: Any) -> Any:
            seen.setdefault(name, []).append(len(some))
            return method(self, some, *more)

        monkeypatch.setattr(owner, name, watched)

    watch(Encoders, "encode_images")
    watch(Encoders, "encode_captions")
    watch(Teacher, "patch_features")
    watch(StructureModel, "structure")
    monkeypatch.setattr(frozen, "BATCH", 3)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-5)
    assert seen.pop("patch_features") == [1] + 3 * [3, 3, 2], "one for its grid, and three steps"
    assert seen == dict.fromkeys(["encode_images", "encode_captions", "structure"], 3 * [3, 3, 2])


def test_half_precision_halves_latents_and_text(world: World, tmp_path: Path) -> None:
    settings = world.settings(processes=1, cache_precision="fp16")
    encode_pictures(settings, world.validated, tmp_path / "features")
    sizes = [
        (folder / "latents-00000.safetensors").stat().st_size for folder in (tmp_path / "features", world.features)
    ]
    assert sizes[0] < 0.6 * sizes[1]
    there = _losses(world, world.settings(processes=1), world.features)
    assert _losses(world, settings, tmp_path / "features") == pytest.approx(there, rel=1e-2)


def test_another_snapshot_takes_no_kept_shard(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    kept = set(cache.iterdir())
    other = save_validated(tmp_path / "validated", world.rows[:-1])
    encode_pictures(world.settings(), other, tmp_path / "second", cache)
    assert len(set(cache.iterdir()) - kept) == len(kept)


def _new_shelves(cache: Path, settings: TrainingSettings, validated: Path, folder: Path) -> list[str]:
    """The parts of which nothing was kept in ``cache`` that fits ``settings``."""
    kept = set(cache.iterdir())
    encode_pictures(settings, validated, folder, cache)
    return sorted(path.name.partition("-")[0] for path in set(cache.iterdir()) - kept)


@pytest.mark.parametrize("digest", ["code_digest", "packages_digest"])
def test_other_code_or_packages_take_no_kept_shard(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    assert _new_shelves(cache, world.settings(), world.validated, tmp_path / "again") == []
    monkeypatch.setattr(encoding, digest, lambda *packages: "sha256:0")
    anew = _new_shelves(cache, world.settings(), world.validated, tmp_path / "second")
    assert anew == ["latents", "strings", "structure", "teacher", "text"]


def test_other_strings_of_the_same_captions_take_no_kept_shard(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    monkeypatch.setattr(phrases, "_PUNCTUATION", re.compile(";"))
    assert _new_shelves(cache, world.settings(), world.validated, tmp_path / "second") == ["strings"]
    encode_pictures(world.settings(), world.validated, tmp_path / "without")
    assert digest_path(tmp_path / "second") == digest_path(tmp_path / "without")


def test_another_precision_keeps_what_it_does_not_decide(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode_pictures(world.settings(), world.validated, tmp_path / "first", cache)
    half = world.settings(cache_precision="fp16")
    assert _new_shelves(cache, half, world.validated, tmp_path / "second") == ["latents", "text"]


def test_another_length_of_captions_encodes_no_picture_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, base = tmp_path / "cache", save_flux(tmp_path / "base")
    monkeypatch.setattr(encoding, "SHARD_BYTES", 16 * 1024)
    short, long = (
        world.settings(base_model=base, buckets=((32, 32),), max_sequence_length=tokens) for tokens in (16, 64)
    )
    encode_pictures(short, world.validated, tmp_path / "first", cache)
    assert len(list(cache.glob("latents-*/*.safetensors"))) > 1
    assert _new_shelves(cache, long, world.validated, tmp_path / "second") == ["text"]


def test_places_of_pictures_are_kept_only_where_training_reads_them(world: World, tmp_path: Path) -> None:
    assert "pictures" not in json.loads((world.features / "corpus.json").read_text())
    encode_pictures(world.settings(cached=("latents",)), world.validated, tmp_path / "features")
    assert len(json.loads((tmp_path / "features" / "corpus.json").read_text())["pictures"]) == 24
