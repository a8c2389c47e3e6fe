"""The private engine: it starts beside any other, and goes with whoever started it, leaving its images only."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import docker
import psutil
import pytest

from infra.images.build import ContainerError
from tests.containers.engine import answers, engine, find_engine, private_engine

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

STARTS = """
import sys, time
from pathlib import Path
from tests.containers.engine import private_engine
with private_engine(Path(sys.argv[1])) as address:
    print(address, flush=True)
    time.sleep(300)
"""


def left_by(folder: Path, address: str) -> list[str]:
    """What an engine has left on the machine: processes, mounts and its runtime folder."""
    runtime = str(Path(address.removeprefix("unix://")).parent)
    processes = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    left = [
        " ".join(line) for line in processes if str(folder / "data") in line or any(runtime in part for part in line)
    ]
    left += [line for line in Path("/proc/self/mounts").read_text().splitlines() if runtime in line]
    return left + ([runtime] if Path(runtime).exists() else [])


def test_it_answers_while_it_is_needed_and_leaves_nothing_running(tmp_path: Path) -> None:
    with private_engine(tmp_path) as address:
        assert answers(address)
        assert left_by(tmp_path, address)
    assert left_by(tmp_path, address) == []


def test_it_is_stopped_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the work"), private_engine(tmp_path) as address:
        raise RuntimeError("the work failed")
    assert left_by(tmp_path, address) == []


def test_it_ends_with_a_killed_owner_and_starts_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        address = owner.stdout.readline().strip()
        owner.kill()
    deadline = time.monotonic() + 30
    while answers(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    with private_engine(tmp_path) as again:
        assert again == address
        assert answers(again)
    assert left_by(tmp_path, address) == []


def test_the_command_line_lends_an_engine_to_a_command(engine: str) -> None:
    """Here one runs already, so the command gets that one, and its exit status is passed on."""
    command = 'test "$DOCKER_HOST" = "$EXPECTED" && exit 7'
    lent = subprocess.run(
        [sys.executable, "-m", "tests.containers.engine", "--", "sh", "-c", command],
        env={**os.environ, "EXPECTED": engine},
    )
    assert lent.returncode == 7


def test_an_engine_that_is_named_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ContainerError, match=r"no Docker engine answers at DOCKER_HOST=unix:///nowhere"):
        find_engine()
    with pytest.raises(ContainerError), engine():
        pass


def test_a_container_does_not_outlive_a_killed_engine(tmp_path: Path) -> None:
    with private_engine(tmp_path) as address:
        container = asleep(address)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert not psutil.pid_exists(container)
    assert left_by(tmp_path, address) == []


def asleep(address: str) -> int:
    """The process id of a container that sleeps, in an empty image into which this machine's programs are mounted."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as empty:
        empty.addfile(tarfile.TarInfo("empty"))
    client = docker.DockerClient(base_url=address)
    try:
        client.api.import_image_from_data(archive.getvalue(), repository="empty", tag="1")
        programs = {
            path: {"bind": path, "mode": "ro"} for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()
        }
        container = client.containers.run(
            "empty:1", ["/bin/sleep", "300"], volumes=programs, network_mode="host", detach=True
        )
        container.reload()
        return int(container.attrs["State"]["Pid"])
    finally:
        client.close()
