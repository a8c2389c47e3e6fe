"""One API server for all tests here, with Triptych's manifests applied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.apiserver.apiserver import HOW, NEVER_SKIP, ApiServer, assets, definitions

OVERLAYS = Path("infra/kubernetes/overlays").resolve()


def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay, as kubectl renders it, its namespace first."""
    command = ["kubectl", "kustomize", str(OVERLAYS / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    documents = [one for one in yaml.safe_load_all(done.stdout) if one]
    return sorted(documents, key=lambda one: one["kind"] != "Namespace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the doctor's tests last: they leave the cluster broken."""
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent and item.path.name == "test_doctor.py")


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    programs = assets()
    if programs is None:
        assert not os.environ.get(NEVER_SKIP), HOW
        pytest.skip(HOW)
    server = ApiServer(programs, tmp_path_factory.mktemp("apiserver"))
    try:
        server.define(*definitions())
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def warnings(api: ApiServer) -> list[str]:
    """The production overlay, applied; what the API server warned of."""
    known = {one["kind"] for one in rendered("production")} if definitions() else set()
    told: list[str] = []
    for document in rendered("production"):
        if known or not document["apiVersion"].partition("/")[0].count("."):
            told += api.apply(document)
    return told
