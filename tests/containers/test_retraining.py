"""The same pipeline in containers: steps share nothing but parameters and artifacts, and the result is the same.

Its portraits come from a bucket, and what opens the bucket stays out of all that the runs leave.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import docker
import pytest
from moto.server import ThreadedMotoServer

from benchmarks.step_overhead import cost
from lineage.records import StepRecord, read_records
from pipelines.containers import ROOT_LABEL
from pipelines.steps import Image
from tests.runs import SECRETS, TRIPTYCH, cut_down, secrets_in, some_portraits, triptych

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Portraits in a bucket, and in the environment what opens it, beside secrets that no step needs."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="portraits")
        for path in some_portraits("new", tmp_path_factory.mktemp("bucket") / "portraits", 200).iterdir():
            client.upload_file(str(path), "portraits", f"new/{path.name}")
        yield "s3://portraits/new"
    server.stop()


@pytest.fixture(scope="module")
def configuration(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even less work: the verdict does not matter here, that it is the same does."""
    folder = tmp_path_factory.mktemp("configuration")
    return cut_down(
        folder,
        folder,
        data={"source": bucket},
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
    images: dict[Image, str], client: docker.DockerClient, configuration: Path, tmp_path: Path
) -> None:
    runs: dict[str, dict[str, StepRecord]] = {}
    for runner in ("processes", "containers"):
        work = tmp_path / runner
        done = triptych("retrain", "--config", configuration, "--runner", runner, "--work-dir", work, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert secrets_in(work) == [] and not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
        runs[runner] = records(work)
    inside, outside = runs["containers"], runs["processes"]
    assert inside["fine-tune"].outputs["candidate"] == outside["fine-tune"].outputs["candidate"]
    assert inside["evaluate"].facts["scores"] == outside["evaluate"].facts["scores"]
    for part in ("decision", "reasons", "figures"):
        assert inside["gate"].facts[part] == outside["gate"].facts[part]
    assert {record.image for record in outside.values()} == {None}
    # Closing happens inside too, so every record names the image that ran it: the one that a cluster would run it in.
    networks = ("encode-features", "fine-tune", "evaluate")
    others = ("snapshot-data", "plan", "validate-data", "gate", "register", "promote", "close-run")
    ran = {step: record.image for step, record in inside.items()}
    assert ran == dict.fromkeys(networks, images["torch"]) | dict.fromkeys(others, images["data"])
    assert images["torch"] != images["data"]
    for runner, left in runs.items():
        print(f"{runner}: {cost(left)}")
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
