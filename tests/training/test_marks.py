"""Marks: the weights after some of a run's steps, kept whatever happens to the run, without changing it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lineage.digests import digest_path
from tests.training.conftest import World
from tests.training.forked import Run, run_all
from training.errors import TrainingError
from training.launch.launch import run_identity
from training.settings import LoraSettings, TrainingSettings
from training.train import lora
from training.train.checkpoints import newest_whole, read_manifest, write_mark
from training.train.export import export_candidate
from training.train.job import MARKS, mark_name, marks_folder

SELECTION = {"selection_set": "/none", "margins": {"alignment": 0.1, "realism": 0.1, "aesthetics": 0.1}, "marks": 3}
KINDS: dict[str, dict[str, Any]] = {
    "zero 2": {},
    "zero 3": {"zero_stage": 3},
    "zero 3 in bf16": {"zero_stage": 3, "precision": "bf16"},
    "alone": {"processes": 1},
    "lora": {"method": "lora", "lora": LoraSettings(rank=4, alpha=12)},
}


def _settings(world: World, **changes: Any) -> TrainingSettings:
    common = {"steps": 10, "checkpoint_every": 3, "log_every": 4, "ema_decay": 0.9, "selection": SELECTION}
    return world.settings(**(common | changes))


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Each kind; one that is killed; and plain ones that end where a mark of the longest is."""
    place = tmp_path_factory.mktemp("marks")
    made = {kind: Run(_settings(world, **how), world.features, place / kind) for kind, how in KINDS.items()}
    plain = _settings(world, selection={})
    made["without"] = Run(plain, world.features, place / "without", place / "without" / "kept")
    made["killed"] = Run(_settings(world), world.features, place / "killed", place / "killed" / "kept", kill_after=7)
    plain_alone = {"supervision": {"enabled": False}, "processes": 1}
    for steps in (2, 5, 10):
        name = f"{steps} steps"
        made[name] = Run(_settings(world, **plain_alone, steps=steps), world.features, place / name)
    statuses = dict(zip(made, run_all(*made.values()), strict=True))
    assert statuses.pop("killed")[0] == -signal.SIGKILL and all(set(of) == {0} for of in statuses.values()), statuses
    return made


def marks(run: Run) -> list[str]:
    return sorted(path.name for path in marks_folder(run.checkpoints, run.candidate).glob("*"))


@pytest.mark.parametrize(
    ("steps", "count", "marked"),
    [(10, 3, [2, 5, 10]), (240, 5, [15, 30, 60, 120, 240]), (5, 5, [1, 2, 5]), (1, 4, [1]), (7, 1, [7])],
)
def test_steps_are_halved(steps: int, count: int, marked: list[int]) -> None:
    selection = SELECTION | {"marks": count}
    fields = {"base_model": Path("/base"), "steps": steps, "supervision": {"enabled": False}}
    assert TrainingSettings.model_validate(fields | {"selection": selection}).marked == marked
    assert TrainingSettings.model_validate(fields).marked == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_mark_is_the_candidate(runs: Mapping[str, Run], tmp_path: Path, kind: str) -> None:
    run = runs[kind]
    assert marks(run) == [mark_name(step) for step in (2, 5, 10)], "and nothing half written"
    last = load_file(run.place / MARKS / mark_name(10))
    assert all(tensor.dtype == torch.float32 for tensor in last.values())
    export_candidate(run.settings.base_model, last, tmp_path / "candidate", run.settings.adapter)
    assert digest_path(tmp_path / "candidate") == digest_path(run.candidate)
    assert all(name.endswith((lora.DOWN, lora.UP)) for name in last) == (kind == "lora")


def test_marks_do_not_change_training(runs: Mapping[str, Run]) -> None:
    assert digest_path(runs["zero 2"].candidate) == digest_path(runs["without"].candidate)
    assert not (runs["without"].place / MARKS).exists()
    kept = runs["without"].checkpoints
    assert kept is not None and sorted(path.name for path in kept.iterdir()) == ["step-00000006", "step-00000009"]
    assert read_manifest(kept / "step-00000009").files.keys() == {
        "curves.jsonl",
        "rank-0.safetensors",
        "rank-1.safetensors",
    }


@pytest.mark.parametrize("step", [2, 5])
def test_a_mark_is_the_average_after_its_step(runs: Mapping[str, Run], step: int) -> None:
    """With a constant rate and no schedule of losses a run of so many steps is the beginning of a longer one."""
    longer = runs["10 steps"]
    begun, ended = (load_file(run.place / MARKS / mark_name(step)) for run in (longer, runs[f"{step} steps"]))
    assert begun.keys() == ended.keys() and all(torch.equal(begun[name], ended[name]) for name in begun)
    assert not torch.equal(begun["proj_out.weight"], load_file(longer.place / MARKS / mark_name(10))["proj_out.weight"])


def test_all_processes_put_the_same_weights_together(runs: Mapping[str, Run]) -> None:
    for step in (2, 5, 10):
        one, three = (load_file(runs[kind].place / MARKS / mark_name(step)) for kind in ("zero 2", "zero 3"))
        assert one.keys() == three.keys()
        assert all(one[name].shape == t.shape and one[name].sub(t).abs().max() < 1e-4 for name, t in three.items())


def _again(run: Run, place: Path) -> Run:
    assert run.checkpoints is not None
    shutil.copytree(run.checkpoints, place / "kept")
    return Run(run.settings, run.features, place, place / "kept")


def test_a_killed_run_has_the_marks_of_one_that_was_not(runs: Mapping[str, Run], tmp_path: Path) -> None:
    whole, again = runs["zero 2"], _again(runs["killed"], tmp_path)
    assert set(*run_all(again)) == {0}
    assert again.result()["resumed_from"] == 6, "after two of the marks"
    assert marks(again) == marks(whole)
    assert digest_path(tmp_path / "kept" / MARKS) == digest_path(whole.place / MARKS)
    assert digest_path(again.candidate) == digest_path(whole.candidate)


@pytest.mark.parametrize(
    ("step", "taken_up"), [(2, 0), (5, 3)], ids=["which both checkpoints need", "which the older one does not need"]
)
@pytest.mark.parametrize("how", ["gone", "other"])
def test_a_checkpoint_whose_mark_is_not_as_it_was_is_passed_over(
    runs: Mapping[str, Run], tmp_path: Path, step: int, taken_up: int, how: str
) -> None:
    again = _again(runs["killed"], tmp_path)
    mark = tmp_path / "kept" / MARKS / mark_name(step)
    mark.unlink() if how == "gone" else mark.write_bytes(mark.read_bytes()[:-1] + b"?")
    found, damaged = newest_whole(tmp_path / "kept", run_identity(again.settings, again.features))
    assert found == (tmp_path / "kept" / f"step-{taken_up:08d}" if taken_up else None)
    assert len(damaged) == (1 if taken_up else 2) and mark.name in damaged[0]
    if how == "gone":
        return
    assert set(*run_all(again)) == {0}
    assert again.result()["resumed_from"] == taken_up
    assert digest_path(mark.parent) == digest_path(runs["zero 2"].place / MARKS)


def test_a_checkpoint_with_other_marks_is_of_another_run(runs: Mapping[str, Run]) -> None:
    run = runs["killed"]
    assert run.checkpoints is not None
    for changes, differ in (({"marks": 2}, r"settings\.marked: \[2, 5, 10\] -> \[5, 10\]"), ({"mixes": (0.1,)}, "")):
        selection = run.settings.selection.model_copy(update=changes)
        other = run_identity(run.settings.model_copy(update={"selection": selection}), run.features)
        if differ:
            with pytest.raises(TrainingError, match=differ):
                newest_whole(run.checkpoints, other)
        else:  # what is chosen afterwards does not touch training
            assert newest_whole(run.checkpoints, other)[0] is not None


def test_a_mark_for_which_there_is_no_room_says_what_to_do(
    runs: Mapping[str, Run], world: World, tmp_path: Path
) -> None:
    (tmp_path / MARKS).write_text("")
    with pytest.raises(TrainingError, match=r"step 3 cannot be kept at .*; make room there, or lower selection\.marks"):
        write_mark(tmp_path / MARKS, 3, {"weight": torch.zeros(2)})
    blocked = Run(_settings(world), world.features, tmp_path)
    assert 0 not in run_all(blocked)[0], "no process waits for the one that cannot write"
    errors = [json.loads(path.read_text()) for path in tmp_path.glob("error-*.json")]
    assert errors and all(error["kind"] == "TrainingError" and "step 2 cannot" in error["message"] for error in errors)
