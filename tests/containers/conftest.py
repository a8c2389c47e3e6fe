"""An engine and the image of this checkout, for every test that needs them. Where they cannot be had, tests fail."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from infra.images.build import build_image
from pipelines.steps import Image
from tests.containers.engine import engine as running_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a Docker engine: the one that runs, or a private one that lasts as long as the tests."""
    with running_engine() as address:
        yield address


@pytest.fixture(scope="session")
def images(engine: str) -> dict[Image, str]:
    """The ids of this checkout's images, built as far as the engine has them not."""
    return {"data": build_image("triptych-data"), "torch": build_image("triptych-torch")}


@pytest.fixture(scope="session")
def image(images: dict[Image, str]) -> str:
    """The id of the one with torch."""
    return images["torch"]


@pytest.fixture(scope="session")
def client(engine: str) -> Iterator[docker.DockerClient]:
    """A client of the engine."""
    client = docker.from_env()
    yield client
    client.close()
