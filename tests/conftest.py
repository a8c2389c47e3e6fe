"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from lineage.registry import Registry


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database to copy: creating one takes long."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{database}", "any").versions()
    return database.read_bytes()
