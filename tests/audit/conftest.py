"""The world under audit, made once; tests that change it put it back."""

from __future__ import annotations

import pytest

from tests.audit.world import World, build


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))
