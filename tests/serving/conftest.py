from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.world import Running, World, serving


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A channel that says nothing yet."""
    made = World(tmp_path)
    assert made.channel.root
    return made


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.promote("1")
    return made


@pytest.fixture(scope="module")
def running(shared_world: World) -> Iterator[Running]:
    """A server that draws with version 1, for tests that only ask it."""
    with serving(shared_world.settings()) as server:
        server.wait(state="ready")
        yield server
