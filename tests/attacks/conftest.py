"""The world under audit, made once and put back after every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit.world import World, build
from tests.tampering.world import kept, restore


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[Path, bytes]]:
    world = build(tmp_path_factory.mktemp("world"))
    return world, kept(world.folder)


@pytest.fixture
def world(made: tuple[World, dict[Path, bytes]]) -> Iterator[World]:
    yield made[0]
    restore(made[0].folder, made[1])
