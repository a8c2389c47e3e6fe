"""What tests of several rooms share."""

from __future__ import annotations

import signal

import pytest

from lineage.registry import Registry

# A shell's background job ignores it, and so would every process that a test starts to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a folder's tests in one process where several run: they share what takes long to make."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database to copy: creating one takes long."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{database}", "any").versions()
    return database.read_bytes()
