"""An engine and the image of this checkout, for every test that needs them. Where they cannot be had, tests fail."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from infra.images.build import build_image
from tests.containers.engine import engine as running_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a Docker engine: the one that runs, or a private one that lasts as long as the tests."""
    with running_engine() as address:
        yield address


@pytest.fixture(scope="session")
def image(engine: str) -> str:
    """The id of this checkout's image, built as far as the engine has it not."""
    return build_image("triptych-torch")


@pytest.fixture(scope="session")
def client(engine: str) -> Iterator[docker.DockerClient]:
    """A client of the engine."""
    client = docker.from_env()
    yield client
    client.close()
