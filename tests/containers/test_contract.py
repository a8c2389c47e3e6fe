"""What we rely on in KFP's DockerRunner. A failure here means: read the new code, then change ours or the digest."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import kfp
import pytest
from kfp import local
from kfp.local import docker_task_handler

from infra.images.build import ContainerError
from pipelines.containers import check_contract


def test_kfp_is_the_version_whose_runner_was_read() -> None:
    assert kfp.__version__ == "2.17.0"


def test_the_handler_that_calls_the_replaced_function_is_the_one_that_was_read() -> None:
    """Its `run` looks the function up by its global name and passes client, image, command and volumes by name."""
    source = inspect.getsource(docker_task_handler.DockerTaskHandler)
    assert hashlib.sha256(source.encode()).hexdigest() == HANDLER


def test_the_replaced_function_is_the_one_that_was_read() -> None:
    source = inspect.getsource(docker_task_handler.run_docker_container)
    assert hashlib.sha256(source.encode()).hexdigest() == FUNCTION
    check_contract()


def test_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_docker_container(client: Any, image: str, command: list[str]) -> int:
        return 0

    monkeypatch.setattr(docker_task_handler, "run_docker_container", run_docker_container)
    with pytest.raises(ContainerError, match="install the KFP that constraints"):
        check_contract()


def test_the_runner_still_refuses_what_it_does_not_pass_on() -> None:
    """So a misspelt or dropped argument (``cap_drop``, ``user``) cannot be lost silently."""
    with pytest.raises(ValueError, match="Unsupported"):
        local.DockerRunner(users="1000")


HANDLER = "172e8507d73fa2b9042a7d42cdb54f7a3ac7a6fb809277284d02f9138568fbe3"
FUNCTION = "63183d16a5ae3514564aa458a4827e95f33bbbb9926e948ab690ad73671a1a53"
