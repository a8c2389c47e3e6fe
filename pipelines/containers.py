"""Run the pipeline's steps in containers on this machine.

    with containers({"data": tag, "torch": tag}, run_id, pipeline_root, mounts=[data, models]):
        retraining(...)

The table `pipelines.steps.STEPS` says in which of the two images a step runs, whatever image its component names, which
keys it sees, and whether what opens a bucket is for it. It sees the pipeline root, the listed paths, each at its own
absolute path, and nothing else of this machine; it runs as the caller, so that its files are the caller's; and it
shares the machine's network, so that a server on loopback is within reach.

KFP's own DockerRunner takes a container that vanished for one that succeeded, pulls what it does not know and
leaves containers running on Ctrl-C. Its one function that runs a container is therefore replaced by ours while the
block lasts; `check_contract` refuses a KFP in which that function is not the one we know.
"""

from __future__ import annotations

import codecs
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import docker
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from kfp import local
from kfp.local import docker_task_handler

from infra.images.build import ContainerError
from lineage.records import IMAGE_VARIABLE, RUN_VARIABLE, account
from pipelines.processes import initialised
from pipelines.steps import STEPS, Image, Step
from pipelines.workspace import terminations_interrupt

CONTRACT = "(client: 'docker.DockerClient', image: str, command: List[str], volumes: Dict[str, Any], **container_run_args) -> int"  # noqa: E501
"""The signature of the function of KFP's that we replace."""

PASSED_ON = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DS_ACCELERATOR", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("ONEDNN_MAX_CPU_ISA", "PYTHONHASHSEED", "TZ"),
)
"""Variables that decide figures or where they are written down: steps see the caller's."""

BUCKETS = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ),
    "hf": ("HF_ENDPOINT", "HF_TOKEN"),
}
"""Scheme -> variables by which such places are reached. Files with credentials are not passed on."""

RUN_LABEL = "triptych.run"
ROOT_LABEL = "triptych.root"
GRACE_SECONDS = 20

UNKNOWN = 1
"""The status of a container whose own cannot be read."""

LOST = (DockerException, OSError, urllib3.exceptions.HTTPError)
"""What a call fails with when the container, or the engine, is gone (errors of `requests` are OSErrors)."""

Volumes = dict[str, dict[str, str]]


def bucket_environment(places: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What of ``environment`` steps need to reach ``places``: nothing where all of them are on this machine."""
    schemes = {place.split("://", 1)[0] for place in places if "://" in place}
    wanted = [variable for scheme in sorted(schemes & BUCKETS.keys()) for variable in BUCKETS[scheme]]
    return {variable: environment[variable] for variable in wanted if environment.get(variable)}


@contextmanager
def containers(
    images: Mapping[Image, str],
    run_id: str,
    pipeline_root: Path,
    mounts: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    credentials: Mapping[str, str] | None = None,
    keys: Path | None = None,
) -> Iterator[None]:
    """Inside this block a pipeline or component that is called runs in containers.

    An interrupt (Ctrl-C or SIGTERM) stops the step's container. No container of a run in this pipeline root outlives
    the block, and none of an earlier run its beginning: one run at a time uses it, which `pipelines.workspace` sees to.

    Args:
        images: both images, by names or ids that the engine has. Nothing is pulled.
        run_id: the run; its containers are labelled with it and with the pipeline root.
        pipeline_root: where artifacts go; made if need be.
        mounts: files and folders that steps may read.
        writable: folders beside the pipeline root that steps may write to.
        environment: variables for every step, beside those of `PASSED_ON`.
        credentials: variables for the steps that read images, and for no other.
        keys: folder of the keys, of which a step sees its own (``<role>.pem`` and ``.pub``); None: none sees any.

    Raises:
        ContainerError: no engine answers, the image or a path is missing, or KFP is not the one we know.
    """
    check_contract()
    pipeline_root = pipeline_root.absolute()
    pipeline_root.mkdir(parents=True, exist_ok=True)
    own = _volumes(pipeline_root, mounts, writable)
    with ExitStack() as stack:
        client = _engine()
        stack.callback(client.close)
        ids = {name: _image_id(client, image) for name, image in images.items()}
        remove_containers(client, pipeline_root)
        stack.callback(remove_containers, client, pipeline_root)
        stack.enter_context(terminations_interrupt())
        labels = {RUN_LABEL: run_id, ROOT_LABEL: str(pipeline_root)}

        def run(image: str, command: list[str], volumes: Volumes, environment: dict[str, str], **arguments: Any) -> int:
            step = STEPS.get(step_of(command), Step())
            arguments["environment"] = environment | {IMAGE_VARIABLE: ids[step.image]}
            if credentials and step.reads_images:
                arguments["environment"] |= credentials
            pairs = [keys / f"{role}.{half}" for role in step.keys for half in ("pem", "pub")] if keys else []
            arguments["volumes"] = volumes | own | _volumes(pipeline_root, pairs, ())
            return run_step(image=ids[step.image], command=command, labels=labels, **arguments)

        stack.enter_context(patch.object(docker_task_handler, "run_docker_container", run))
        runner = local.DockerRunner(**_arguments({**(environment or {}), RUN_VARIABLE: run_id}))
        stack.enter_context(initialised(runner, pipeline_root))
        yield


def check_contract() -> None:
    """Refuse a KFP whose function that runs a container is not the one that ours stands in for.

    Raises:
        ContainerError: it has another signature.
    """
    found = str(inspect.signature(docker_task_handler.run_docker_container))
    if found != CONTRACT:
        raise ContainerError(
            f"kfp.local.docker_task_handler.run_docker_container is {found}, not {CONTRACT}; "
            "install the KFP that constraints.txt pins, or bring run_step in pipelines/containers.py up to this one"
        )


def remove_containers(client: docker.DockerClient, pipeline_root: Path) -> None:
    """Remove every container of the runs in ``pipeline_root``."""
    mine = {"label": f"{ROOT_LABEL}={pipeline_root}"}
    for container in client.containers.list(all=True, filters=mine, ignore_removed=True):
        print(f"removing container {container.short_id} of run {container.labels[RUN_LABEL]}")
        remove(container)


def _engine() -> docker.DockerClient:
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not address.startswith("unix://"):
        raise ContainerError(f"the engine at DOCKER_HOST={address} may be elsewhere and not see paths of this machine")
    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, OSError) as error:
        raise ContainerError(
            f"no Docker engine answers at {address} ({error}); start it, or set DOCKER_HOST"
        ) from error
    options = client.info().get("SecurityOptions") or []
    if any("rootless" in option or "userns" in option for option in options):
        client.close()
        raise ContainerError(f"the engine at {address} maps users, so files would not be the caller's; use another one")
    return client


def _image_id(client: docker.DockerClient, image: str) -> str:
    try:
        return str(client.images.get(image).id)
    except ImageNotFound as error:
        raise ContainerError(
            f"the engine has no image {image} and none is pulled; build it: python -m infra.images.build"
        ) from error


def _volumes(pipeline_root: Path, mounts: Sequence[Path], writable: Sequence[Path]) -> Volumes:
    """Where each path appears in a container and whether it may be written to. The pipeline root is KFP's to mount."""
    modes = {path.absolute(): "ro" for path in mounts} | {path.absolute(): "rw" for path in writable}
    for path, mode in modes.items():
        if not path.exists():
            raise ContainerError(f"steps are to see {path}, and nothing is there; correct the configuration")
        if path == pipeline_root and mode == "ro":
            raise ContainerError(f"{path} is the pipeline root and an input; put the artifacts elsewhere")
    modes.pop(pipeline_root, None)
    return {str(path): {"bind": str(path), "mode": mode} for path, mode in modes.items()}


def _arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """What DockerRunner passes on for each container: the caller's identity and rights, and no more."""
    user, group = os.getuid(), os.getgid()
    passed_on = {variable: os.environ[variable] for variable in PASSED_ON if variable in os.environ}
    identity = {"HOME": "/tmp", "USER": account(), "LOGNAME": account()}
    cores = sorted(os.sched_getaffinity(0))  # as many threads, and so the same sums, as a process would have
    return {
        "user": f"{user}:{group}",
        "group_add": [str(other) for other in os.getgroups() if other != group],
        "environment": passed_on | dict(environment) | identity,
        "cpuset_cpus": ",".join(map(str, cores)) if len(cores) < (os.cpu_count() or 1) else None,
        "network_mode": "host",
        "tmpfs": {"/tmp": "exec,mode=1777"},
        "shm_size": "1g",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }


def run_step(client: docker.DockerClient, image: str, command: list[str], volumes: Volumes, **arguments: Any) -> int:
    """Run ``command`` in a container, print what it prints, and return its exit status.

    The container is kept until its status is read, so that none can pass for a success by vanishing: then, and when
    it cannot be started, the status is 1 and the reason is printed. It is removed in any case; on an interrupt it is
    told first (SIGINT, so that the step can leave its record), and killed `GRACE_SECONDS` later.

    Args:
        arguments: what else the engine's API is told.
    """
    try:
        container = client.containers.create(image, command, volumes=volumes, **arguments)
    except LOST as error:
        print(f"no container can be made of image {image}: {error}")
        return UNKNOWN
    try:
        container.start()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a chunk may end inside a character
        for chunk in container.logs(stream=True, follow=True):
            print(decoder.decode(chunk), end="", flush=True)
        return _status(container)
    except LOST as error:
        print(f"container {container.short_id} ended and left no status: {error}")
        return UNKNOWN
    except (KeyboardInterrupt, SystemExit):
        _interrupt(container)
        raise
    finally:
        try:
            remove(container)
        except ContainerError as error:
            print(error)


def step_of(command: Sequence[str]) -> str:
    """The step that KFP's ``command`` runs, by its component's name; empty for another command."""
    flag = "--function_to_execute"
    return command[command.index(flag) + 1].replace("_", "-") if flag in command[:-1] else ""


def _status(container: Any) -> int:
    status = int(container.wait()["StatusCode"])
    if status == 0:
        return 0
    container.reload()
    reason = "out of memory" if container.attrs["State"]["OOMKilled"] else f"status {status}"
    print(f"container {container.short_id} ended: {reason}")
    return status


def _interrupt(container: Any) -> None:
    with suppress(*LOST):  # it has ended, or it does not end in time: it is removed by force next
        container.kill("SIGINT")
        container.wait(timeout=GRACE_SECONDS)


def remove(container: Any) -> None:
    """Remove a container by force, whatever its state, and return when it is gone.

    Raises:
        ContainerError: it is still there after `GRACE_SECONDS`.
    """
    try:
        with suppress(NotFound):
            container.remove(force=True)
    except (APIError, OSError) as error:  # such as 409: somebody else is removing it
        try:
            container.wait(condition="removed", timeout=GRACE_SECONDS)
        except NotFound:
            return
        except LOST:
            told = f"container {container.short_id} cannot be removed: {error}; docker rm --force it"
            raise ContainerError(told) from error
