"""Training that cannot go on stops, says why, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Thread

import psutil
import pytest
import torch

from tests.training.conftest import World
from tests.training.tiny import respoilt, save_bundle, save_teacher
from training.errors import STOPPED, TrainingError
from training.launch.launch import _failure, fine_tune, run_identity
from training.train.checkpoints import newest_whole, read_manifest
from training.train.curves import read_points
from training.train.meter import Meter
from training.train.process import without_memory

LAUNCH = """
import sys
from pathlib import Path
from training.launch.launch import fine_tune
from training.settings import TrainingSettings
settings = TrainingSettings.model_validate_json(sys.argv[1])
fine_tune(settings, *map(Path, sys.argv[2:5]), checkpoints=Path(sys.argv[5]))
"""


def test_a_loss_that_is_not_finite_stops_training_at_its_step(world: World, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(world.features, features)
    respoilt(features, "latents", lambda row: row["mean"].fill_(torch.nan))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 of 5; nothing is exported, there is no"):
        fine_tune(world.settings(), features, tmp_path / "candidate", tmp_path / "curves.jsonl")
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_ended_leaves_no_process_and_saves_where_it_was_asked(
    world: World, tmp_path: Path, how: signal.Signals
) -> None:
    settings = world.settings(steps=100_000, log_every=1, checkpoint_every=0)
    candidate, curves, kept = tmp_path / "candidate", tmp_path / "curves.jsonl", tmp_path / "kept"
    arguments = [settings.model_dump_json(), str(world.features), str(candidate), str(curves), str(kept)]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (curves.exists() and curves.read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, "training did not begin"
        time.sleep(0.2)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len([p for p in family if "training.train.process" in " ".join(p.cmdline())]) >= 2
    os.kill(launcher.pid, how)
    assert launcher.wait(timeout=60) == (STOPPED if how == signal.SIGTERM else -how)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert not candidate.exists()
    if how == signal.SIGTERM:
        found, _ = newest_whole(kept, run_identity(settings, world.features))
        assert found and len(read_points(curves)) == read_manifest(found).step


def test_a_process_that_is_lost_is_begun_again_from_the_last_checkpoint(world: World, tmp_path: Path) -> None:
    settings = world.settings(steps=120, log_every=5, checkpoint_every=10)
    whole = fine_tune(settings, world.features, tmp_path / "whole" / "candidate", tmp_path / "whole" / "curves.jsonl")
    candidate, curves, kept = tmp_path / "candidate", tmp_path / "curves.jsonl", tmp_path / "kept"

    def kill() -> None:
        while not list(kept.glob("step-????????")):
            time.sleep(0.01)
        children = [(p, " ".join(p.cmdline())) for p in psutil.Process().children(recursive=True)]
        workers = [p for p, told in children if "training.train.process" in told and "torch.distributed" not in told]
        workers[-1].kill()

    killing = Thread(target=kill, daemon=True)
    killing.start()
    record = fine_tune(settings, world.features, candidate, curves, checkpoints=kept)
    assert record.resumed_from >= 10, "it was not killed"
    assert record.candidate == whole.candidate
    assert [p.step for p in read_points(curves)] == list(range(5, 125, 5))


@pytest.mark.parametrize("begun", ["torch.distributed.run", "training.train.process"])
def test_a_launcher_that_is_asked_while_its_processes_start_saves_the_first_step(
    world: World, tmp_path: Path, begun: str
) -> None:
    settings = world.settings(steps=100_000, checkpoint_every=0)
    places = [str(tmp_path / name) for name in ("candidate", "curves.jsonl", "kept")]
    arguments = [settings.model_dump_json(), str(world.features), *places]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(begun in command[1:4] for command in _commands(launcher.pid)):
        assert launcher.poll() is None and time.monotonic() < deadline, "no process was started"
        time.sleep(0.01)
    launcher.terminate()
    assert launcher.wait(timeout=120) == STOPPED
    found, _ = newest_whole(tmp_path / "kept", run_identity(settings, world.features))
    assert found and read_manifest(found).step == 1


def _commands(pid: int) -> list[list[str]]:
    """The command lines of the descendants of ``pid``."""
    commands = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            commands.append(process.cmdline())
    return commands


def test_features_of_another_base_model_are_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(base_model=save_bundle(tmp_path / "other", seed=9))
    with pytest.raises(TrainingError, match=r"encoders: sha256:.* -> sha256:"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_features_of_another_teacher_are_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(teacher=save_teacher(tmp_path / "other", seed=9))
    with pytest.raises(TrainingError, match=r"teacher: tree-sha256:.* -> tree-sha256:"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_a_bundle_of_another_kind_is_refused(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtPipeline"}))
    with pytest.raises(
        TrainingError,
        match="PixArtPipeline; the families trained here are Stable",
    ):
        fine_tune(world.settings(base_model=base), world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_a_process_that_fails_is_reported_with_its_own_error(world: World, tmp_path: Path) -> None:
    settings = world.settings(supervision=world.settings().supervision.model_copy(update={"tap": 7}))
    with pytest.raises(TrainingError, match="blocks 0 to 2"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


@pytest.mark.parametrize("full", ["disk", "output"])
def test_a_process_that_cannot_leave_its_error_still_says_it_and_ends(tmp_path: Path, full: str) -> None:
    folder = tmp_path / "away" if full == "disk" else tmp_path
    leave = (
        "import sys, pathlib, training.train.process as process\n"
        "process._leave(pathlib.Path(sys.argv[1]), OSError('the cause'), 75)"
    )
    with Path("/dev/full").open("w") as nowhere:
        ended = subprocess.run(
            [sys.executable, "-c", leave, str(folder)],
            stderr=subprocess.PIPE if full == "disk" else nowhere,
            text=True,
        )
    assert ended.returncode == 75
    said = ended.stderr if full == "disk" else (tmp_path / "error-0.json").read_text()
    assert "the cause" in said
    assert [path.name for path in tmp_path.iterdir()] == ([] if full == "disk" else ["error-0.json"])


@pytest.mark.parametrize(
    ("line", "killed"),
    [
        ("  exitcode  : -9 (pid: 4711)", True),
        ("  traceback : Signal 9 (SIGKILL) received by PID 4711", True),
        ("adam_eps 1e-9, learning rate 3e-9, exitcode  : 1 (pid: 9)", False),
    ],
)
def test_memory_is_blamed_only_where_a_process_was_killed(tmp_path: Path, line: str, killed: bool) -> None:
    assert ("killed with signal 9" in str(_failure(tmp_path, 1, deque([line])))) == killed


def test_a_loss_that_runs_away_stops_training_at_its_step(world: World) -> None:
    from accelerate import Accelerator

    meter = Meter(Accelerator(cpu=True), world.settings(steps=50), lambda: "the last good checkpoint is C")
    for step in range(30):
        meter.add(step, {"loss": torch.tensor(1.0), "loss_flow": torch.tensor(1 + step % 3)})
    meter.settle()
    meter.add(30, {"loss": torch.tensor(1.0), "loss_flow": torch.tensor(19.0)})
    meter.settle()
    meter.add(31, {"loss": torch.tensor(1.0), "loss_flow": torch.tensor(2.0)})
    meter.add(32, {"loss": torch.tensor(1.0), "loss_flow": torch.tensor(21.0)})
    with pytest.raises(TrainingError, match=r"21, more than 10 times .* at step 33 of 50; .* good checkpoint is C"):
        meter.settle()


def test_memory_that_runs_out_is_answered_with_the_settings_that_help() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    told = without_memory(raised.value)
    assert told and "out of memory" in str(told)
    for setting in ("gradient_accumulation", "gradient_checkpointing", "zero_stage: 3", "offload", "batch_size"):
        assert setting in str(told)
    assert without_memory(RuntimeError("something else")) is None
