"""The containers runner on a real engine: what reaches a step, what comes out of it, and how a run ends."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docker
import pytest
from kfp import dsl
from kfp.local import config, docker_task_handler

from infra.images.build import ContainerError
from lineage.embedded import Embedded
from pipelines.containers import RUN_LABEL, containers, remove, run_step
from pipelines.steps import Image

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

STRANGER = 12345  # a user id that this machine has no name for
SECONDS = 240

component = functools.partial(dsl.component, base_image="unused", install_kfp_package=False)


@component
def write(text: str, artifact: dsl.Output[dsl.Artifact]) -> None:
    """First step: an artifact."""
    from pathlib import Path

    Path(artifact.path).write_text(text)


@component
def read(artifact: dsl.Input[dsl.Artifact]) -> str:
    """Second step: what is in it."""
    from pathlib import Path

    return Path(artifact.path).read_text().upper()


@dsl.pipeline
def two_steps(text: str) -> str:
    """The artifact of one step is the input of the next."""
    written = write(text=text)
    return read(artifact=written.outputs["artifact"]).output


@component
def leave(status: int) -> None:
    """End at once with a status."""
    import os

    os._exit(status)


@component
def sleep() -> None:
    """Be there long enough to be killed."""
    import time

    time.sleep(300)


@component
def look(readable: str, hidden: str) -> dict:  # type: ignore[type-arg]
    """What a step sees of the machine."""
    import os
    import shutil
    from pathlib import Path

    try:
        Path(readable, "new").write_text("")
        writable = True
    except OSError:
        writable = False
    return {
        "read": Path(readable, "file").read_text(),
        "writable": writable,
        "hidden": Path(hidden).exists(),
        "beside": sorted(path.name for path in Path(hidden).parent.iterdir()),
        "sockets": Path("/var/run/docker.sock").exists(),
        "user": [os.getuid(), os.getgid()],
        "home": os.environ["HOME"],
        "image": os.environ["TRIPTYCH_IMAGE"],
        "run": os.environ["TRIPTYCH_RUN"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "given": os.environ["GIVEN"],
        "cores": len(os.sched_getaffinity(0)),
        "shm": shutil.disk_usage("/dev/shm").total,
    }


class Run(NamedTuple):
    """A run's name and its pipeline root."""

    id: str
    root: Path


@pytest.fixture
def run(tmp_path: Path, client: docker.DockerClient) -> Iterator[Run]:
    """A run of its own, of which nothing is left when the test ends."""
    run = Run(tmp_path.name, tmp_path / "root")
    yield run
    for container in of_run(client, run.id):
        remove(container)


def of_run(client: docker.DockerClient, run: str) -> list[Any]:
    """All containers of a run, whatever their state."""
    return list(client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run}"}, ignore_removed=True))


def running(client: docker.DockerClient, run: str, says: bytes = b"") -> Any:
    """The run's container, once it is running and has said so."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for container in of_run(client, run):
            if container.status == "running" and says in container.logs():
                return container
        time.sleep(0.1)
    raise AssertionError(f"run {run} has no running container after {SECONDS} s")


def test_an_artifact_passes_from_step_to_step(images: dict[Image, str], run: Run, client: docker.DockerClient) -> None:
    with containers(images, run.id, run.root):
        assert two_steps(text="portrait").output == "PORTRAIT"
    assert of_run(client, run.id) == []


def test_files_are_the_callers(images: dict[Image, str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.root.mkdir()
    os.chown(run.root, STRANGER, STRANGER)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    monkeypatch.setattr(os, "getgid", lambda: STRANGER)
    with containers(images, run.id, run.root):
        written = write(text="portrait").outputs["artifact"]
    for path in (Path(written.path), Path(written.path).parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (STRANGER, STRANGER)


def test_a_step_sees_what_is_listed_and_nothing_else(
    images: dict[Image, str], run: Run, tmp_path: Path, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "file").write_text("content")
    (tmp_path / "hidden").write_text("secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SECRET", "secret")
    with containers(images, run.id, run.root, mounts=[listed], environment={"GIVEN": "yes"}):
        seen = look(readable=str(listed), hidden=str(tmp_path / "hidden")).output
    assert seen == {
        "read": "content",
        "writable": False,
        "hidden": False,
        "beside": ["listed", "root"],
        "sockets": False,
        "user": [os.getuid(), os.getgid()],
        "home": "/tmp",
        "image": client.images.get(images["data"]).id,
        "run": run.id,
        "threads": "1",
        "given": "yes",
        "cores": len(os.sched_getaffinity(0)),
        "shm": 2**30,
    }
    assert not (listed / "new").exists()


def test_only_steps_that_read_images_see_the_credentials_of_a_bucket(images: dict[Image, str], run: Run) -> None:
    @component
    def validate_data() -> str:
        import os

        return os.environ.get("AWS_SECRET_ACCESS_KEY", "nothing") + os.environ["GIVEN"]

    @component
    def register() -> str:
        import os

        return os.environ.get("AWS_SECRET_ACCESS_KEY", "nothing") + os.environ["GIVEN"]

    secret = {"AWS_SECRET_ACCESS_KEY": "secret"}
    with containers(images, run.id, run.root, environment={"GIVEN": "!"}, credentials=secret):
        assert validate_data().output == "secret!"
        assert register().output == "nothing!"


def test_each_step_runs_in_its_image_and_sees_its_own_keys_only(images: dict[Image, str], run: Run) -> None:
    """As on a cluster: only the gate step has the gate key, and the promotion key is the server's."""
    home = Embedded(run.root.parent / "lineage")
    home.open()

    @component
    def gate(keys: str) -> dict:  # type: ignore[type-arg]
        import os
        from pathlib import Path

        return {"image": os.environ["TRIPTYCH_IMAGE"], "seen": sorted(path.name for path in Path(keys).iterdir())}

    @component
    def promote(keys: str) -> dict:  # type: ignore[type-arg]
        import os
        from pathlib import Path

        return {"image": os.environ["TRIPTYCH_IMAGE"], "seen": sorted(path.name for path in Path(keys).iterdir())}

    @component
    def fine_tune(keys: str) -> dict:  # type: ignore[type-arg]
        import os
        from importlib.util import find_spec
        from pathlib import Path

        assert find_spec("torch")
        return {"image": os.environ["TRIPTYCH_IMAGE"], "seen": sorted(path.name for path in Path(keys).iterdir())}

    own = ["run.pem", "run.pub"]
    with containers(images, run.id, run.root, keys=home.keys):
        assert gate(keys=str(home.keys)).output == {"image": images["data"], "seen": ["gate.pem", "gate.pub", *own]}
        assert promote(keys=str(home.keys)).output == {"image": images["data"], "seen": own}
        assert fine_tune(keys=str(home.keys)).output == {"image": images["torch"], "seen": own}


def test_writable_folders_beside_the_root(images: dict[Image, str], run: Run, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()

    @component
    def record(path: str) -> None:
        from pathlib import Path

        Path(path).write_text("done")

    with containers(images, run.id, run.root, writable=[records]):
        record(path=str(records / "step.json"))
    assert (records / "step.json").read_text() == "done"


def test_a_step_that_fails_fails_the_run(images: dict[Image, str], run: Run, client: docker.DockerClient) -> None:
    @dsl.pipeline
    def failing() -> None:
        leave(status=3)

    with containers(images, run.id, run.root), pytest.raises(RuntimeError, match="FAILURE"):
        failing()
    assert of_run(client, run.id) == []


def test_no_short_container_passes_for_a_success(image: str, client: docker.DockerClient) -> None:
    """KFP's own function returned 0 for 1 of 15 containers that had left with status 3."""
    labels = {RUN_LABEL: "short"}
    ended = [run_step(client, image, ["sh", "-c", "exit 3"], {}, labels=labels) for _ in range(15)]
    assert ended == [3] * 15


def test_a_container_that_cannot_be_made_or_started_is_a_failure(image: str, client: docker.DockerClient) -> None:
    assert run_step(client, f"sha256:{'0' * 64}", ["true"], {}, labels={}) == 1
    assert run_step(client, image, ["true"], {}, labels={}, entrypoint=["/no/program"]) == 1


def test_a_long_silence_is_no_loss(image: str, client: docker.DockerClient) -> None:
    hasty = docker.from_env(timeout=2)
    assert run_step(hasty, image, ["sh", "-c", "sleep 5; exit 4"], {}, labels={}) == 4


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda container: container.kill(), id="killed"),
        pytest.param(lambda container: container.remove(force=True), id="removed"),
    ],
)
def test_a_container_that_dies_fails_the_run(
    images: dict[Image, str], run: Run, client: docker.DockerClient, end: Callable[[Any], None]
) -> None:
    murderer = threading.Thread(target=lambda: end(running(client, run.id)))
    with containers(images, run.id, run.root):
        murderer.start()
        with pytest.raises(RuntimeError, match="FAILURE"):
            sleep()
    murderer.join()
    assert of_run(client, run.id) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_container(
    image: str, run: Run, client: docker.DockerClient, number: signal.Signals
) -> None:
    with long_run(image, run) as process:
        running(client, run.id, says=b"asleep")
        process.send_signal(number)
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert of_run(client, run.id) == [], output
    assert (run.root / "note").read_text() == "interrupted", "the step was killed before it could leave its record"


def test_what_a_killed_run_left_is_removed_by_the_next_in_its_folder(
    images: dict[Image, str], run: Run, client: docker.DockerClient, tmp_path: Path
) -> None:
    """One run at a time uses a folder, which its lock sees to; see tests/pipelines/test_interruption.py."""
    with long_run(images["data"], run) as process:
        left = running(client, run.id)
        with containers(images, "another", tmp_path / "elsewhere"):
            assert of_run(client, run.id) == [left], "what runs in another folder keeps its container"
        process.kill()
        process.wait(SECONDS)
    with containers(images, "another", tmp_path / "elsewhere"):
        assert of_run(client, run.id) == [left]
    with containers(images, "another", run.root):
        assert of_run(client, run.id) == []


def long_run(image: str, run: Run) -> subprocess.Popen[str]:
    """Start ``long_step.py`` in a process of its own."""
    program = Path(__file__).with_name("long_step.py")
    return subprocess.Popen(
        [sys.executable, str(program), image, run.id, str(run.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            {"images": {"data": "triptych:unknown"}}, "no image triptych:unknown and none is pulled", id="image"
        ),
        pytest.param({"mounts": [Path("/no/data")]}, "steps are to see /no/data, and nothing is there", id="input"),
    ],
)
def test_what_is_missing_is_named_before_a_step_runs(
    images: dict[Image, str], run: Run, given: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"images": images, "run_id": run.id, "pipeline_root": run.root} | given
    with pytest.raises(ContainerError, match=message), containers(**arguments):
        raise AssertionError("not reached")


def test_kfp_is_as_before_after_the_block(images: dict[Image, str], run: Run) -> None:
    before = docker_task_handler.run_docker_container, config.LocalExecutionConfig.instance
    with containers(images, run.id, run.root):
        assert docker_task_handler.run_docker_container is not before[0]
    assert (docker_task_handler.run_docker_container, config.LocalExecutionConfig.instance) == before
