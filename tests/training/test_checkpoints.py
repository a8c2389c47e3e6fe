"""A run that is cut off ends where the uninterrupted one does, bit by bit; no checkpoint is taken for another."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.fine_tune.candidate import remove_abandoned
from lineage.digests import digest_path
from tests.training.conftest import World
from tests.training.forked import Run, run_all
from training.errors import TrainingError
from training.launch.launch import run_identity
from training.settings import LoraSettings, TrainingSettings
from training.train.checkpoints import Manifest, begin, finish, newest, newest_whole
from training.train.curves import read_points

KINDS: dict[str, dict[str, Any]] = {
    "zero 2": {"zero_stage": 2},
    "zero 3 in bf16": {"zero_stage": 3, "precision": "bf16"},
    "alone, two parts": {"processes": 1, "gradient_accumulation": 2},
    "zero 2 in bf16, two parts": {"zero_stage": 2, "precision": "bf16", "gradient_accumulation": 2},
    "an adapter": {"method": "lora", "lora": LoraSettings(rank=4, alpha=16)},
}
EPOCH = 6
"""Steps: 24 pictures, 4 a step."""
KILLED = {"between epochs": EPOCH, "between checkpoints": EPOCH + 2}


def _settings(world: World, kind: str, **changes: Any) -> TrainingSettings:
    common = {"steps": 10, "checkpoint_every": 3, "log_every": 4, "ema_decay": 0.9}
    return world.settings(**(common | KINDS[kind] | changes))


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Each kind uninterrupted, and killed twice; the killed ones have not been run again."""
    place = tmp_path_factory.mktemp("runs")
    made = {}
    for kind in KINDS:
        made[kind] = Run(_settings(world, kind), world.features, place / kind, place / kind / "checkpoints")
    for when, after in KILLED.items():
        name = f"zero 2, {when}"
        made[name] = Run(_settings(world, "zero 2"), world.features, place / name, place / name / "kept", after)
    for kind in list(KINDS)[1:]:
        name = f"{kind}, between checkpoints"
        made[name] = Run(_settings(world, kind), world.features, place / name, place / name / "kept", EPOCH + 2)
    statuses = dict(zip(made, run_all(*made.values()), strict=True))
    for name, of in statuses.items():
        assert set(of) == ({-signal.SIGKILL} if "between" in name else {0}), (name, of)
    return made


def _again(run: Run, place: Path, **changes: Any) -> Run:
    """The same run in another place, with a copy of the checkpoints."""
    assert run.checkpoints is not None
    shutil.copytree(run.checkpoints, place / "kept")
    settings = TrainingSettings.model_validate(run.settings.model_dump() | changes)
    return Run(settings, run.features, place, place / "kept")


def _points(run: Run) -> list[dict[str, float]]:
    points = [(point.step, point.metrics()) for point in read_points(run.curves)]
    return [{"step": step} | {n: v for n, v in m.items() if n != "samples_per_second"} for step, m in points]


@pytest.fixture(scope="module")
def resumed(runs: Mapping[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """The killed runs, run again."""
    again = {n: _again(r, tmp_path_factory.mktemp("again")) for n, r in runs.items() if "between" in n}
    statuses = run_all(*again.values())
    assert all(set(of) == {0} for of in statuses), statuses
    return again


@pytest.mark.parametrize(
    "name", [*(f"zero 2, {when}" for when in KILLED), *(f"{k}, between checkpoints" for k in list(KINDS)[1:])]
)
def test_a_killed_run_ends_bit_by_bit_where_the_uninterrupted_one_does(
    runs: Mapping[str, Run], resumed: Mapping[str, Run], name: str
) -> None:
    whole = runs[name.removesuffix(", between epochs").removesuffix(", between checkpoints")]
    assert resumed[name].result()["resumed_from"] == EPOCH
    assert digest_path(resumed[name].candidate) == digest_path(whole.candidate)
    assert _points(resumed[name]) == _points(whole), "the curves tell the whole run"


def test_a_run_killed_again_and_again_ends_in_the_same_bits(runs: Mapping[str, Run], tmp_path: Path) -> None:
    """Four times in all: twice between the same checkpoints, and once after the next one."""
    run = runs["zero 2, between checkpoints"]
    for number, after in enumerate((EPOCH + 1, EPOCH + 2, EPOCH + 3, -1)):
        (tmp_path / str(number)).mkdir()
        run = dataclasses.replace(_again(run, tmp_path / str(number)), kill_after=after)
        assert set(run_all(run)[0]) == ({-signal.SIGKILL} if after > 0 else {0})
    assert run.result()["resumed_from"] == EPOCH + 3
    assert digest_path(run.candidate) == digest_path(runs["zero 2"].candidate)


def test_only_the_newest_checkpoints_are_kept(runs: Mapping[str, Run]) -> None:
    assert sorted(path.name for path in (runs["zero 2"].place / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000009",
    ]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    runs: Mapping[str, Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = _again(runs["zero 2, between checkpoints"], tmp_path)
    shard = tmp_path / "kept" / "step-00000006" / "rank-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert set(*run_all(again)) == {0}
    assert f"checkpoint {shard.parent} is damaged and passed over: rank-1.safetensors" in capfd.readouterr().out
    assert (tmp_path / "kept" / "step-00000006.damaged" / "manifest.json").exists(), "it is put aside"
    assert again.result()["resumed_from"] == 3
    assert digest_path(again.candidate) == digest_path(runs["zero 2"].candidate)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"processes": 1}, "was saved by 2 processes and this run has 1: each holds its own shard"),
        (
            {"learning_rate": 0.5, "ema_decay": 0.5},
            r"another run: settings\.ema_decay: .*; settings\.learning_rate: .* -> 0\.5;",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(runs: Mapping[str, Run], changes: dict[str, Any], reason: str) -> None:
    run = runs["zero 2"]
    settings = TrainingSettings.model_validate(run.settings.model_dump() | changes)
    assert run.checkpoints is not None
    with pytest.raises(TrainingError, match=reason):
        newest_whole(run.checkpoints, run_identity(settings, run.features))


def test_a_checkpoint_on_other_features_is_refused(runs: Mapping[str, Run]) -> None:
    run = runs["zero 2"]
    other = run_identity(run.settings, run.features).model_copy(update={"features": "sha256:other"})
    assert run.checkpoints is not None
    with pytest.raises(TrainingError, match=r"is of another run: features: sha256:.* -> sha256:other;"):
        newest_whole(run.checkpoints, other)


def test_a_checkpoint_made_with_other_packages_is_refused(runs: Mapping[str, Run]) -> None:
    run = runs["zero 2"]
    other = run_identity(run.settings, run.features).model_copy(update={"packages": "sha256:other"})
    assert run.checkpoints is not None
    with pytest.raises(TrainingError, match=r"is of another run: packages: sha256:.* -> sha256:other;"):
        newest_whole(run.checkpoints, other)


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_later_one(runs: Mapping[str, Run], tmp_path: Path) -> None:
    again = _again(runs["zero 2"], tmp_path)
    kept = tmp_path / "kept"
    for step in (6, 9):
        (kept / f"step-{step:08d}" / "manifest.json").unlink()
    identity = run_identity(again.settings, again.features)
    assert newest_whole(kept, identity)[0] is None
    manifest = Manifest(run=identity, step=3, updates=3, loss_scale={}, meter={}, files={})
    assert finish(begin(kept, 3), manifest, b"", keep=1).exists()
    assert newest_whole(kept, identity)[0] == kept / "step-00000003" and "step-00000003" in newest(kept)


def test_how_training_is_watched_may_change(runs: Mapping[str, Run]) -> None:
    run = runs["zero 2"]
    changed = run.settings.model_copy(update={"log_every": 1, "keep_checkpoints": 7})
    assert run.checkpoints is not None
    found, _ = newest_whole(run.checkpoints, run_identity(changed, run.features))
    assert found == run.checkpoints / "step-00000009"


@pytest.mark.parametrize("missing", ["manifest.json", "rank-0.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(runs: Mapping[str, Run], tmp_path: Path, missing: str) -> None:
    again = _again(runs["zero 2"], tmp_path)
    (tmp_path / "kept" / "step-00000009" / missing).unlink()
    found, damaged = newest_whole(tmp_path / "kept", run_identity(again.settings, again.features))
    assert found == tmp_path / "kept" / "step-00000006" and len(damaged) == 1 and missing in damaged[0]


def test_a_full_disk_costs_no_checkpoint_and_says_what_to_do(runs: Mapping[str, Run], tmp_path: Path) -> None:
    full = Run(runs["zero 2"].settings, runs["zero 2"].features, tmp_path, tmp_path / "kept", file_limit=100_000)
    assert set(*run_all(full)) != {0}
    assert "step-00000006 cannot be written: " in full.error() and "File too large" in full.error()
    assert f"the last good checkpoint is {tmp_path / 'kept' / 'step-00000003'}" in full.error()
    assert "make room there, or lower keep_checkpoints, and run again" in full.error()
    roomy = Run(full.settings, full.features, tmp_path, full.checkpoints)
    assert set(*run_all(roomy)) == {0}
    assert roomy.result()["resumed_from"] == 3
    assert digest_path(roomy.candidate) == digest_path(runs["zero 2"].candidate)
    assert not list((tmp_path / "kept").glob("*.partial")), "what the full disk left is gone"


def test_the_manifest_names_the_run(runs: Mapping[str, Run]) -> None:
    manifest = json.loads((runs["zero 2"].place / "checkpoints" / "step-00000009" / "manifest.json").read_text())
    assert manifest["run"]["processes"] == 2 and manifest["run"]["settings"]["seed"] == 0
    assert set(manifest["files"]) == {"rank-0.safetensors", "rank-1.safetensors", "curves.jsonl"}


def test_checkpoints_that_no_run_takes_up_are_removed_in_time(tmp_path: Path) -> None:
    for name, days in (("own", 90), ("abandoned", 20), ("another", 3)):
        (tmp_path / name / "step-00000001").mkdir(parents=True)
        then = time.time() - days * 24 * 3600
        for path in (tmp_path / name / "step-00000001", tmp_path / name):
            os.utime(path, (then, then))
    remove_abandoned(tmp_path, "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "own"]
