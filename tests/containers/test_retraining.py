"""The same pipeline in containers: steps share nothing but parameters and artifacts, and the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import docker
import pytest

from lineage.records import StepRecord, read_records
from pipelines.container_step import ROOT_LABEL
from tests.runs import TRIPTYCH, cut_down, some_portraits, triptych

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even less work: the verdict does not matter here, that it is the same does."""
    folder = tmp_path_factory.mktemp("configuration")
    return cut_down(
        folder,
        some_portraits("new", folder / "portraits", 200),
        training={"steps": 20, "log_every": 5},
        evaluation={"limit": 48, "grid": 4},
        gate={"minimum_prompts": 8},
    )


def records(work: Path) -> dict[str, StepRecord]:
    folder = work / "pipeline" / "records"
    (run,) = [path.name for path in folder.iterdir()]
    return read_records(str(folder), run)


def of(work: Path) -> dict[str, str]:
    """The containers of one work folder's runs: an engine may hold those of others, and of runs that were killed."""
    return {"label": f"{ROOT_LABEL}={work / 'pipeline'}"}


def test_containers_give_what_processes_give(
    image: str, client: docker.DockerClient, configuration: Path, tmp_path: Path
) -> None:
    runs: dict[str, dict[str, StepRecord]] = {}
    for runner in ("processes", "containers"):
        work = tmp_path / runner
        done = triptych("retrain", "--config", configuration, "--runner", runner, "--work-dir", work, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        runs[runner] = records(work)
    inside, outside = runs["containers"], runs["processes"]
    assert inside["fine-tune"].outputs["candidate"] == outside["fine-tune"].outputs["candidate"]
    assert inside["evaluate"].facts["scores"] == outside["evaluate"].facts["scores"]
    for part in ("decision", "reasons", "figures"):
        assert inside["gate"].facts[part] == outside["gate"].facts[part]
    assert {record.image for record in outside.values()} == {None}
    # Closing happens inside too, so every record names the image that ran it.
    assert {record.image for record in inside.values()} == {client.images.get(image).id}
    assert client.containers.list(all=True, filters=of(tmp_path / "containers")) == []


def test_ctrl_c_stops_the_container_and_the_server(
    image: str, client: docker.DockerClient, configuration: Path, tmp_path: Path
) -> None:
    command = [str(TRIPTYCH), "retrain", "--config", str(configuration), "--runner", "containers"]
    run = subprocess.Popen([*command, "--work-dir", str(tmp_path / "work")], env=os.environ.copy())
    until = time.monotonic() + 300
    while not client.containers.list(filters=of(tmp_path / "work")):
        assert time.monotonic() < until and run.poll() is None, "no step ever started"
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(90) == 130
    assert client.containers.list(all=True, filters=of(tmp_path / "work")) == []
    again = triptych("retrain", "--config", configuration, "--runner", "processes", "--work-dir", tmp_path / "work")
    assert again.returncode == 2
    assert "belongs to runs in containers" in again.stderr
