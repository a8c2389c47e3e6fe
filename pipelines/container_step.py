"""Run one step in one container, in place of KFP's own function, and know for certain how it ended."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import docker
import urllib3
from docker.errors import APIError, DockerException, NotFound

from infra.images.build import ContainerError

RUN_LABEL = "triptych.run"
ROOT_LABEL = "triptych.root"
GRACE_SECONDS = 20

UNKNOWN = 1
"""The status of a container whose own cannot be read."""

LOST = (DockerException, OSError, urllib3.exceptions.HTTPError)
"""What a call fails with when the container, or the engine, is gone (errors of `requests` are OSErrors)."""

Volumes = dict[str, dict[str, str]]


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
