"""MLflow's stores with the guard inside: every route, REST, ajax and GraphQL, ends in one of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from mlflow.server import handlers
from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.dbmodels.models import SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

from infra.governed.artifacts import GuardedFolders, inside, place
from infra.governed.guard import Guard
from infra.governed.identity import current_user
from lineage.digests import LineageError
from lineage.entries import LedgerError, Registered
from lineage.registry import CHAMPION, TAG

KEPT_TAGS = (TAG, "mlflow.prompt.")
"""Prefixes of tags that only the ledger's projection sets; the second one would hide a model among the prompts."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of aliases and of new models. No two of them look alike, and no database takes one for another."""

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""Versions as MLflow itself writes them; ``02`` would be another one in the ledger and the same one in MLflow."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a refusal of ours into HTTP 403 with its reason, which MLflow's UI shows."""
    try:
        yield
    except LineageError as error:
        raise MlflowException(str(error), error_code=PERMISSION_DENIED) from error


def check_name(name: str) -> None:
    """Refuse names that could be taken for another one.

    Raises:
        MlflowException: this is one (HTTP 400).
    """
    if not NAME.fullmatch(name or ""):
        raise MlflowException(
            f"{name!r}: on this server the name of a model or an alias has letters of ASCII, digits, '.', '_' and '-', "
            "and begins with a letter or digit",
            error_code=INVALID_PARAMETER_VALUE,
        )


class GuardedRegistry(RegistryStore):  # type: ignore[misc]
    """The model registry. Setting ``champion`` is a request to promote; what goes round that is refused."""

    guard: Guard
    destination: str

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        check_name(alias)
        # The databases tell Champion from champion, people do not.
        if alias.lower() != CHAMPION:
            super().set_registered_model_alias(name, alias, version)
            return
        number = str(self.get_model_version(name, version).version)
        with refusing():
            self.guard.move("promote", name, number, current_user(self.guard.settings))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        if alias.lower() == CHAMPION:
            self._refuse_if_governed(name, "its champion is taken away by: triptych withdraw")
        super().delete_registered_model_alias(name, alias)

    def create_registered_model(self, name: str, *args: Any, **more: Any) -> Any:
        check_name(name)
        with refusing():
            # MLflow's clients ask for a model that is there too, and go on when they are told so.
            if self.guard.governs(name) and not self.search_registered_models(f"name = '{name}'"):
                raise LedgerError(f"the ledger knows versions of {name}; restore MLflow's database, do not begin anew")
        return super().create_registered_model(name, *args, **more)

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        check_name(new_name)
        self._refuse_if_governed(name, "it keeps its name")
        self._refuse_if_governed(new_name, "no other model takes its name")
        return super().rename_registered_model(name, new_name)

    def delete_registered_model(self, name: str) -> None:
        self._refuse_if_governed(name, "it cannot be deleted")
        super().delete_registered_model(name)

    def create_model_version(self, name: str, source: str, run_id: str | None = None, *args: Any, **more: Any) -> Any:
        with refusing():
            if self.guard.governs(name):
                run = handlers._get_tracking_store().get_run(run_id or "")
                self._own_folder(f"the new version of {name}", self._stored(source), run.info.artifact_uri)
        return super().create_model_version(name, source, run_id, *args, **more)

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
            self._refuse_if_governed(name, f"tag {tag.key} of its versions repeats the ledger and is not for editing")
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        if key.casefold().startswith(KEPT_TAGS):
            self._refuse_if_known(name, version, f"its tag {key} repeats the ledger and is not for editing")
        super().delete_model_version_tag(name, version, key)

    def folder_of(self, registered: Registered) -> str:
        """The `place` of the folder that holds a version's model folder and its evidence.

        Raises:
            LedgerError: there is no such version of this run, or its files are not in the run's own folder.
        """
        what = registered.name
        if not NUMBER.fullmatch(registered.version):
            raise LedgerError(f"{what}: MLflow has no version of this name")
        columns = SqlModelVersion.storage_location, SqlModelVersion.source, SqlRun.artifact_uri, SqlRun.lifecycle_stage
        with self.ManagedSessionMaker(read_only=False) as session:  # not from a replica that lags behind
            query = session.query(*columns).join(SqlRun, SqlRun.run_uuid == SqlModelVersion.run_id)
            found = query.filter(
                SqlModelVersion.name == registered.model,
                SqlModelVersion.version == int(registered.version),
                SqlModelVersion.run_id == registered.mlflow_run,
            ).one_or_none()
        if found is None:
            raise LedgerError(f"MLflow has no {what} that run {registered.mlflow_run} made")
        stored, source, artifacts, stage = found
        if stage != LifecycleStage.ACTIVE:
            raise LedgerError(f"the run {registered.mlflow_run} behind {what} was deleted; restore it")
        return self._own_folder(what, stored or source, artifacts)

    def _own_folder(self, what: str, stored: str, artifacts: str) -> str:
        folder = place(stored, self.destination).rpartition("/")[0]
        if not inside(folder, place(artifacts, self.destination)):
            raise LedgerError(f"the files of {what} are not in the artifact folder of its own run: {stored}")
        return folder

    def _stored(self, source: str) -> str:
        if not source.startswith("models:"):
            return source
        copied = _parse_model_uri(source)
        # The source of a logged model, which has no version, is none of a run's.
        return str(self.get_model_version_download_uri(copied.name, copied.version)) if copied.version else source

    def _refuse_if_governed(self, name: str, why: str) -> None:
        with refusing():
            if self.guard.keeps(name):
                raise LedgerError(f"the ledger keeps the model {name}: {why}")

    def _refuse_if_known(self, name: str, version: str, why: str) -> None:
        number = str(self.get_model_version(name, version).version)
        with refusing(), self.guard.state() as state:
            if state.registered(name, number):
                raise LedgerError(f"the ledger keeps version {number} of {name}: {why}")


class GuardedTracking(TrackingStore):  # type: ignore[misc]
    """Runs and experiments: `mlflow gc` removes the files of deleted ones, and new versions lie where they say."""

    guard: Guard
    files: GuardedFolders

    def delete_run(self, run_id: str) -> None:
        of = self.get_experiment(self.get_run(run_id).info.experiment_id).name
        with refusing():
            if run_id in self.guard.runs() or self.guard.keeps(of):
                raise LedgerError(f"run {run_id} makes versions that the ledger keeps; it cannot be deleted")
        super().delete_run(run_id)

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> Any:
        self._refuse_name(name)
        if artifact_location:
            with refusing():
                self.files.check_location(artifact_location, self.guard.settings)
            with self.files.writing(artifact_location):
                return super().create_experiment(name, artifact_location, tags)
        return super().create_experiment(name, artifact_location, tags)

    def delete_experiment(self, experiment_id: str) -> None:
        self._refuse_if_governed(experiment_id, "it cannot be deleted")
        super().delete_experiment(experiment_id)

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        self._refuse_if_governed(experiment_id, "it keeps its name")
        self._refuse_name(new_name)
        super().rename_experiment(experiment_id, new_name)

    def _refuse_name(self, name: str) -> None:
        with refusing():
            if self.guard.governs(name):
                raise LedgerError(f"the ledger keeps the model {name}: no other experiment takes its name")

    def _refuse_if_governed(self, experiment_id: str, why: str) -> None:
        found = self.get_experiment(experiment_id)  # MLflow takes "01" for experiment 1
        with self.ManagedSessionMaker(read_only=False) as session:
            rows = session.query(SqlRun.run_uuid).filter(SqlRun.experiment_id == int(found.experiment_id))
            runs = {run for (run,) in rows}
        with refusing():
            if self.guard.keeps(found.name) or runs & self.guard.runs():
                raise LedgerError(f"the ledger keeps versions made in the experiment {found.name}: {why}")


def install(guard: Guard, destination: str) -> None:
    """Have this process's MLflow server use guarded stores and write through guarded artifact repositories."""
    replica = os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)

    def registry(store_uri: str) -> GuardedRegistry:
        store = GuardedRegistry(store_uri, read_db_uri=replica)
        store.guard, store.destination = guard, destination
        return store

    def protected() -> Mapping[str, str]:
        with refusing():
            return guard.folders()

    guard.folder_of = lambda registered: str(handlers._get_model_registry_store().folder_of(registered))
    files = GuardedFolders(destination, guard.writes, protected)

    def tracking(store_uri: str, artifact_uri: str) -> GuardedTracking:
        store = GuardedTracking(store_uri, artifact_uri, read_db_uri=replica)
        store.guard, store.files = guard, files
        return store

    for scheme in DATABASE_ENGINES:
        handlers._model_registry_store_registry.register(scheme, registry)
        handlers._tracking_store_registry.register(scheme, tracking)
    files.install()
