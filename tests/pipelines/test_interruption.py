"""Ctrl-C at any moment leaves nothing running and a state from which the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from lineage.records import read_records
from lineage.registry import Registry
from pipelines.errors import RequestError
from pipelines.workspace import MARK, Workspace, stop_leftovers, workspace
from tests.runs import TRIPTYCH


def processes_of(work: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(work):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def start(configuration: Path, work: Path) -> subprocess.Popen[str]:
    command = [str(TRIPTYCH), "retrain", "--config", str(configuration), "--work-dir", str(work)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_text(log_folder: Path, text: str, patience: float = 300) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if any(text in path.read_text() for path in log_folder.glob("*.log")):
            return
        time.sleep(0.2)
    raise AssertionError(f"{text!r} was never said")


@pytest.mark.parametrize("moment", ["Executing task 'plan'", "fine-tuning"])
def test_an_interrupted_run_leaves_nothing_running(tmp_path: Path, good_configuration: Path, moment: str) -> None:
    work = tmp_path / "work"
    run = start(good_configuration, work)
    await_text(work / "logs", moment)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert run.stdout is not None and "nothing is left running" in run.stdout.read()
    assert processes_of(work) == []
    folder = work / "pipeline" / "records"
    (name,) = [path.name for path in folder.iterdir()]
    records = read_records(str(folder), name)
    assert records["close-run"].facts["outcome"] == "failed"
    if "plan" in records and records["plan"].status == "complete":
        store = Registry(f"sqlite:///{work / 'mlflow.db'}", "portrait-avatars")
        assert store.client.get_run(records["plan"].facts["mlflow_run"]).info.status == "KILLED"
        assert store.versions() == []


def test_one_run_at_a_time_uses_a_work_folder(tmp_path: Path) -> None:
    with (
        workspace(tmp_path, "processes"),
        pytest.raises(RequestError, match="another run uses"),
        workspace(tmp_path, "processes"),
    ):
        pass


def test_a_work_folder_belongs_to_one_runner(tmp_path: Path) -> None:
    with workspace(tmp_path, "processes"):
        pass
    with pytest.raises(RequestError, match="belongs to runs in processes"), workspace(tmp_path, "containers"):
        pass


def test_what_a_killed_run_left_behind_is_stopped_by_the_next(tmp_path: Path) -> None:
    orphan, stranger = (
        subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: str(folder.resolve())})
        for folder in (tmp_path, tmp_path / "another")
    )
    stop_leftovers(Workspace(tmp_path))
    assert orphan.wait(10) == -signal.SIGKILL
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait(10)


def test_sigterm_is_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workspace(tmp_path, "processes"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
