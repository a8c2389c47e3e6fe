"""One node of a training job: its place among the others, and what it refuses to train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from tests.training.conftest import World
from training.errors import TrainingError
from training.launch.launch import ALONE, Nodes, launcher_environment, torchrun
from training.launch.node import REQUEST, TrainingRequest, input_digests, nodes_of, run_node
from training.launch.transfer import Place

TOLD = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500"}


def test_the_trainers_variables_say_which_node_this_is_and_are_left_to_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = nodes_of(TOLD)
    assert nodes == Nodes(machines=2, rank=1)
    command = torchrun(8, nodes)
    assert command[-3:] == ["--nproc-per-node", "4", "-m"] and "--standalone" not in command
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    assert TOLD.items() <= launcher_environment(1, nodes).items()


def test_training_on_one_machine_takes_no_setting_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    assert not [name for name in launcher_environment(1) if name.startswith("PET_")]
    assert "--standalone" in torchrun(2)


@pytest.mark.parametrize("missing", sorted(TOLD))
def test_outside_a_job_the_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(TrainingError, match=f"no node of a training job: '{missing}'"):
        nodes_of({name: value for name, value in TOLD.items() if name != missing})


def test_processes_that_do_not_spread_evenly_are_refused() -> None:
    with pytest.raises(TrainingError, match="3 training processes cannot be spread evenly over 2 nodes"):
        torchrun(3, nodes_of(TOLD))


@pytest.mark.parametrize("what", ["features", "base model", "training code"])
def test_a_node_with_other_inputs_trains_nothing(world: World, tmp_path: Path, what: str) -> None:
    digests = input_digests(world.settings(), world.features) | {what: "sha256:other"}
    other = TrainingRequest(settings=world.settings(), features=str(world.features), digests=digests)
    place = Place(str(tmp_path / "job"))
    place.write(REQUEST, other.model_dump_json())
    with pytest.raises(
        TrainingError, match=f"other inputs than were asked for: {what}: sha256:other -> (tree-)?sha256:"
    ):
        run_node(place, ALONE)
    assert [path.name for path in (tmp_path / "job").iterdir()] == [REQUEST]


def test_a_node_without_a_request_says_so_and_ends_with_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.launch.node", "--place", str(tmp_path)]
    ended = subprocess.run(command, env=os.environ | TOLD, capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"training failed: there is no {REQUEST} at {tmp_path}" in ended.stderr


def test_folders_travel_to_an_object_store_and_back(tmp_path: Path) -> None:
    (tmp_path / "here" / "inner").mkdir(parents=True)
    (tmp_path / "here" / "inner" / "weights").write_bytes(b"\0\1")
    (tmp_path / "here" / "index").write_text("{}")
    place = Place("memory://bucket/folder")
    place.upload(tmp_path / "here")
    place.download(tmp_path / "back")
    assert (tmp_path / "back" / "inner" / "weights").read_bytes() == b"\0\1"
    assert (place.path, place.read("index"), place.read("none")) == (None, "{}", None)
    place.remove("inner", "none")
    assert fsspec.filesystem("memory").find("/bucket/folder") == ["/bucket/folder/index"]


@pytest.mark.parametrize("name", ["../outside", "inner/../../outside", "/outside", "inner/.."])
def test_a_name_that_leads_out_of_the_folder_is_refused_and_nothing_is_copied(tmp_path: Path, name: str) -> None:
    place = Place("memory://odd/folder")
    place.write("index", "{}")
    fsspec.filesystem("memory").store[f"/odd/folder/{name}"] = MemoryFile(data=b"escaped")
    try:
        with pytest.raises(TrainingError, match=f"/odd/folder/{re.escape(name)} at .* leads out of a folder"):
            place.download(tmp_path / "deep" / "here")
    finally:
        fsspec.filesystem("memory").store.clear()
    assert list(tmp_path.rglob("*")) == []


def test_storage_that_this_image_cannot_reach_is_named() -> None:
    with pytest.raises(TrainingError, match=r"nowhere://bucket cannot be opened: .*nowhere"):
        Place("nowhere://bucket")
