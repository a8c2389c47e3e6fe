"""MLflow's stores with the guard inside: every route, REST, ajax and GraphQL, ends in one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server import handlers
from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

from infra.governed.artifacts import GuardedFolders
from infra.governed.guard import Guard
from infra.governed.identity import current_user
from lineage.digests import LineageError
from lineage.entries import LedgerError
from lineage.registry import CHAMPION, TAG

KEPT_TAGS = (TAG, "mlflow.prompt.")
"""Prefixes of tags that only the ledger's projection sets; the second one would hide a model among the prompts."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a refusal of ours into HTTP 403 with its reason, which MLflow's UI shows."""
    try:
        yield
    except LineageError as error:
        raise MlflowException(str(error), error_code=PERMISSION_DENIED) from error


class GuardedRegistry(RegistryStore):  # type: ignore[misc]
    """The model registry. Setting ``champion`` is a request to promote; what goes round that is refused."""

    guard: Guard

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if alias.casefold() != CHAMPION:
            super().set_registered_model_alias(name, alias, version)
            return
        number = str(self.get_model_version(name, version).version)
        with refusing():
            self.guard.promote(name, number, current_user(self.guard.settings))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        if alias.casefold() == CHAMPION:
            self._refuse_if_governed(name, "its champion is taken away by: triptych withdraw")
        super().delete_registered_model_alias(name, alias)

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        self._refuse_if_governed(name, "it keeps its name")
        self._refuse_if_governed(new_name, "no other model takes its name")
        return super().rename_registered_model(name, new_name)

    def delete_registered_model(self, name: str) -> None:
        self._refuse_if_governed(name, "it cannot be deleted")
        super().delete_registered_model(name)

    def delete_model_version(self, name: str, version: str) -> None:
        self._refuse_if_known(name, version, "it cannot be deleted; to stop its use: triptych withdraw")
        super().delete_model_version(name, version)

    def set_registered_model_tag(self, name: str, tag: Any) -> None:
        if tag.key.casefold().startswith(KEPT_TAGS):
            self._refuse_if_governed(name, f"its tag {tag.key} is not for editing")
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        if key.casefold().startswith(KEPT_TAGS):
            self._refuse_if_governed(name, f"its tag {key} is not for editing")
        super().delete_registered_model_tag(name, key)

    def set_model_version_tag(self, name: str, version: str, tag: Any) -> None:
        if tag.key.casefold().startswith(KEPT_TAGS):
            self._refuse_if_known(name, version, f"its tag {tag.key} repeats the ledger and is not for editing")
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        if key.casefold().startswith(KEPT_TAGS):
            self._refuse_if_known(name, version, f"its tag {key} repeats the ledger and is not for editing")
        super().delete_model_version_tag(name, version, key)

    def folders(self, models: list[str]) -> dict[str, str]:
        """Where the files of the versions of ``models`` are: URI -> the version's name."""
        places = SqlModelVersion.storage_location, SqlModelVersion.source
        with self.ManagedSessionMaker() as session:
            query = session.query(SqlModelVersion.name, SqlModelVersion.version, *places).filter(
                SqlModelVersion.name.in_(models), SqlModelVersion.current_stage != STAGE_DELETED_INTERNAL
            )
            return {uri: f"version {row[1]} of {row[0]}" for row in query for uri in row[2:] if uri}

    def _refuse_if_governed(self, name: str, why: str) -> None:
        with refusing():
            if self.guard.governs(name):
                raise LedgerError(f"the ledger keeps the model {name}: {why}")

    def _refuse_if_known(self, name: str, version: str, why: str) -> None:
        with refusing():
            if self.guard.knows(name, str(self.get_model_version(name, version).version)):
                raise LedgerError(f"the ledger keeps version {version} of {name}: {why}")


class GuardedTracking(TrackingStore):  # type: ignore[misc]
    """Runs and experiments: `mlflow gc` removes the files of deleted ones."""

    guard: Guard
    files: GuardedFolders

    def delete_run(self, run_id: str) -> None:
        self._refuse_runs({run_id}, f"run {run_id}")
        super().delete_run(run_id)

    def delete_experiment(self, experiment_id: str) -> None:
        with refusing():
            runs = self.guard.runs()
        behind = {run for run in runs if self._experiment_of(run) == str(experiment_id)}
        self._refuse_runs(behind, f"experiment {experiment_id}")
        super().delete_experiment(experiment_id)

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> Any:
        if artifact_location:
            self.files.check_write(artifact_location)
        return super().create_experiment(name, artifact_location, tags)

    def _experiment_of(self, run: str) -> str:
        try:
            return str(self.get_run(run).info.experiment_id)
        except MlflowException:
            return ""

    def _refuse_runs(self, runs: set[str], what: str) -> None:
        with refusing():
            if runs & self.guard.runs():
                raise LedgerError(f"{what} made versions that the ledger keeps; it cannot be deleted")


def install(guard: Guard, destination: str) -> None:
    """Have this process's MLflow server use guarded stores and write through guarded artifact repositories."""
    replica = os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)

    def registry(store_uri: str) -> GuardedRegistry:
        store = GuardedRegistry(store_uri, read_db_uri=replica)
        store.guard = guard
        return store

    def protected() -> dict[str, str]:
        with refusing():
            store: GuardedRegistry = handlers._get_model_registry_store()
            return store.folders(guard.models())

    files = GuardedFolders(destination, protected)

    def tracking(store_uri: str, artifact_uri: str) -> GuardedTracking:
        store = GuardedTracking(store_uri, artifact_uri, read_db_uri=replica)
        store.guard, store.files = guard, files
        return store

    for scheme in DATABASE_ENGINES:
        handlers._model_registry_store_registry.register(scheme, registry)
        handlers._tracking_store_registry.register(scheme, tracking)
    files.install()
