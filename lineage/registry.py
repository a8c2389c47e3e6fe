"""The model registry: versions, the champion, and the evidence each version carries, kept in MLflow.

Everything that binds one thing to another is a digest; version numbers and tags only help to find it. Weights that
come out of the registry are checked against the digest the caller expects.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from lineage.digests import PREFIX, LineageError, digest_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
TAG = "triptych."
MODEL_FOLDER = "model"
WEIGHTS_FOLDER = "artifacts/weights"
"""Inside the model folder, where MLflow's own loader looks for them."""
EVIDENCE_FOLDER = "evidence"


class RegistrySettings(BaseModel):
    """Where candidates are registered and who promotes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_name: str
    """The registered model, such as ``portrait-avatars``."""
    mode: Literal["auto", "manual"] = "auto"
    """``auto``: a promote verdict moves ``champion``. ``manual``: it sets ``challenger`` and a person decides."""
    artifacts: str | None = None
    """Where the experiment keeps its files, such as ``s3://bucket/prefix``: weights then go straight to that store.
    None: wherever the MLflow server puts them, through the server."""
    license: str | None = None
    """Under which the model may be used, best as an SPDX expression."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set: a KFP parameter cannot hold a null."""
        return {name: value for name, value in serialize(self).items() if value is not None}


@dataclass(frozen=True)
class Version:
    """One version of the registered model, with our tags (without their prefix)."""

    name: str
    number: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run: str
    """The MLflow run that logged it."""
    created: int
    """Milliseconds since the epoch."""

    @property
    def uri(self) -> str:
        """Where its weights are."""
        return f"models:/{self.name}/{self.number}"


class Registry:
    """One registered model in one MLflow server or store.

    Args:
        artifacts: where a new experiment keeps its files, as `RegistrySettings` says.
    """

    def __init__(self, tracking_uri: str, model_name: str, artifacts: str | None = None) -> None:
        from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self.model_name = model_name
        self.artifacts = artifacts
        self.client: MlflowClient = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.model_name}'")
        aliases = self._aliases()
        versions = [
            Version(
                name=self.model_name,
                number=str(version.version),
                aliases=tuple(sorted(a for a, number in aliases.items() if number == str(version.version))),
                tags={k.removeprefix(TAG): v for k, v in version.tags.items() if k.startswith(TAG)},
                run=version.run_id,
                created=version.creation_timestamp,
            )
            for version in found
        ]
        return sorted(versions, key=lambda version: int(version.number))

    def champion(self) -> Version | None:
        """The version that holds the alias ``champion``, if any."""
        return next((version for version in self.versions() if CHAMPION in version.aliases), None)

    def version_of(self, mlflow_run: str) -> Version | None:
        """The version that an MLflow run logged, if it did."""
        return next((version for version in self.versions() if version.run == mlflow_run), None)

    def fetch_evidence(self, mlflow_run: str, target: Path) -> Path:
        """Copy what is stored beside the weights into the folder ``target``; gives the copy.

        Raises:
            LineageError: the artifact store does not have it.
        """
        place = f"{self.client.get_run(mlflow_run).info.artifact_uri}/{EVIDENCE_FOLDER}"
        return _fetch(self.tracking_uri, place, target)

    def metrics(self, prefix: str, suffix: str) -> dict[str, dict[str, float]]:
        """MLflow run -> the metrics whose name has both, by what stands between."""
        experiment = self.client.get_experiment_by_name(self.model_name)
        found: dict[str, dict[str, float]] = {}
        page: str | None = ""
        while experiment and page is not None:
            runs = self.client.search_runs([experiment.experiment_id], page_token=page or None)
            page = runs.token or None
            for run in runs:
                found[run.info.run_id] = {
                    name.removeprefix(prefix).removesuffix(suffix): float(value)
                    for name, value in run.data.metrics.items()
                    if name.startswith(prefix) and name.endswith(suffix)
                }
        return found

    def open_run(self, run: str) -> str:
        """The MLflow run of pipeline run ``run``: the one already there, or a new one. Returns its id.

        Raises:
            LineageError: the experiment keeps its files elsewhere than the settings say.
        """
        found = self._find_run(run)
        if found is not None:
            return found
        experiment = self.client.get_experiment_by_name(self.model_name)
        if experiment and self.artifacts and experiment.artifact_location.rstrip("/") != self.artifacts.rstrip("/"):
            raise LineageError(
                f"experiment {self.model_name!r} keeps its files in {experiment.artifact_location}, and MLflow cannot "
                f"move it to {self.artifacts}; set registry.artifacts to the former, or choose another model_name"
            )
        experiment_id = experiment.experiment_id if experiment else self._create_experiment()
        tags = {f"{TAG}run": run}
        return str(self.client.create_run(experiment_id, run_name=run, tags=tags).info.run_id)

    def log_dataset(self, mlflow_run: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Show in MLflow which data a run trains on.

        Args:
            digest: of the snapshot. MLflow shows 36 characters of one; all of it stands in the profile.
            source: URI or path of where it came from.
            profile: what is known of it, such as the number of rows.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        place = source if "://" in source else f"file://{source}"
        shown = Dataset(
            name=place.rstrip("/").rpartition("/")[2][:500] or "data",
            digest=digest.removeprefix(PREFIX)[:36],
            source_type=place.partition("://")[0],
            source=json.dumps({"uri": place}),
            profile=json.dumps({"digest": digest, **profile}),
        )
        self.client.log_inputs(mlflow_run, [DatasetInput(shown, [InputTag("mlflow.data.context", "training")])])

    def close_run(self, run: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close the MLflow run of pipeline run ``run`` if it has one."""
        found = self._find_run(run)
        if found is not None:
            self.client.set_terminated(found, status=status)

    def register(
        self,
        mlflow_run: str,
        weights: Path,
        folder: Path,
        evidence: Mapping[str, Path],
        tags: Mapping[str, str],
        description: str,
    ) -> Version:
        """Store weights with their evidence as a new version; a repeated call gives the version already there.

        Args:
            folder: an MLflow model folder without its weights, which are stored in its `WEIGHTS_FOLDER`.
            evidence: name -> a file of that name, or a folder.
        """
        if known := self.version_of(mlflow_run):
            return known
        self.client.log_artifacts(mlflow_run, str(folder), MODEL_FOLDER)
        self.client.log_artifacts(mlflow_run, str(weights), f"{MODEL_FOLDER}/{WEIGHTS_FOLDER}")
        for name, path in evidence.items():
            if path.is_dir():
                self.client.log_artifacts(mlflow_run, str(path), f"{EVIDENCE_FOLDER}/{name}")
            else:
                self.client.log_artifact(mlflow_run, str(path), EVIDENCE_FOLDER)
        source = f"{self.client.get_run(mlflow_run).info.artifact_uri}/{MODEL_FOLDER}"
        if not self._exists():
            self.client.create_registered_model(self.model_name)
        made = self.client.create_model_version(
            self.model_name,
            source,
            run_id=mlflow_run,
            tags={f"{TAG}{name}": value for name, value in tags.items()},
            description=description,
        )
        return next(version for version in self.versions() if version.number == str(made.version))

    def set_alias(self, alias: str, version: Version) -> None:
        """Point ``alias`` at ``version``."""
        self.client.set_registered_model_alias(self.model_name, alias, version.number)

    def tag(self, version: Version, tags: Mapping[str, Any]) -> None:
        """Set our tags on ``version``."""
        for name, value in tags.items():
            self.client.set_model_version_tag(self.model_name, version.number, f"{TAG}{name}", str(value))

    def _create_experiment(self) -> str:
        # A store without a server keeps its files beside the database, not in the folder we happen to run in.
        database = self.tracking_uri.removeprefix("sqlite:///")
        beside = None if database == self.tracking_uri else (Path(database).parent / "artifacts").as_uri()
        return str(self.client.create_experiment(self.model_name, artifact_location=self.artifacts or beside))

    def _exists(self) -> bool:
        return bool(self.client.search_registered_models(f"name = '{self.model_name}'"))

    def _aliases(self) -> dict[str, str]:
        if not self._exists():
            return {}
        return {a: str(n) for a, n in self.client.get_registered_model(self.model_name).aliases.items()}

    def _find_run(self, run: str) -> str | None:
        experiment = self.client.get_experiment_by_name(self.model_name)
        if experiment is None:
            return None
        found = self.client.search_runs([experiment.experiment_id], f"tags.`{TAG}run` = '{run}'")
        return str(found[0].info.run_id) if found else None


def fetch_weights(tracking_uri: str, uri: str, digest: str, target: Path) -> Path:
    """Copy the weights at ``uri`` (``models:/NAME/N``, or a local folder of weights) to ``target`` and check them.

    Raises:
        LineageError: nothing is there, or it is not what ``digest`` says; ``target`` is then left alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = _download(tracking_uri, uri, scratch) if uri.startswith("models:/") else _copy(Path(uri), scratch)
        actual = digest_path(found)
        if actual != digest:
            raise LineageError(
                f"the weights at {uri} have digest {actual}, expected {digest or 'one that is missing'}: they were "
                "changed after they were recorded; restore them, or train anew with --force"
            )
        shutil.copytree(found, target, dirs_exist_ok=True)
    return target


def _copy(weights: Path, scratch: str) -> Path:
    # What is checked is what is handed on, whatever happens to the original meanwhile.
    try:
        return Path(shutil.copytree(weights, Path(scratch) / "weights"))
    except (OSError, shutil.Error) as error:
        raise LineageError(f"the weights at {weights} cannot be read: {error}") from error


def _download(tracking_uri: str, uri: str, scratch: str) -> Path:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        # Not by its models:/ name: MLflow then fetches the whole model folder and writes a file of its own into it.
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        stored = client.get_model_version_download_uri(*uri.removeprefix("models:/").split("/"))
    except MlflowException as error:
        raise LineageError(f"{uri} is not in the registry at {tracking_uri}: {error}") from error
    return _fetch(tracking_uri, f"{stored}/{WEIGHTS_FOLDER}", Path(scratch))


def _fetch(tracking_uri: str, place: str, target: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    target.mkdir(parents=True, exist_ok=True)
    try:
        return Path(download_artifacts(artifact_uri=place, tracking_uri=tracking_uri, dst_path=str(target)))
    except (MlflowException, OSError) as error:
        raise LineageError(
            f"{place} is not in the artifact store: {error}; restore it, or train anew with --force"
        ) from error
