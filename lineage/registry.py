"""The model registry in MLflow: runs, versions, and where the files of a version lie.

Everything that binds one thing to another is a digest in the ledger; version numbers and tags only help to find it.

    <artifacts of the MLflow run>/candidate-<random>/model/       the model folder: what a version's source names
                                                     .../artifacts/weights/
                                  candidate-<random>/evidence/    what lies beside it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lineage.digests import LineageError
from lineage.frozen import Section

CHAMPION = "champion"
CHALLENGER = "challenger"
TAG = "triptych."
EVIDENCE_FOLDER = "evidence"


class RegistrySettings(Section):
    """Where candidates are registered and who promotes them."""

    model_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The registered model, such as ``portrait-avatars``. ASCII, so that no database takes it for another one."""
    mode: Literal["auto", "manual"] = "auto"
    """``auto``: a promote verdict moves ``champion``. ``manual``: it sets ``challenger`` and a person decides."""
    artifacts: str | None = None
    """Where the experiment keeps its files, such as ``s3://bucket/prefix``: weights then go straight to that store.
    None: wherever the MLflow server puts them, through the server."""
    lease_hours: float = Field(default=24.0, gt=0, le=168)
    """How long a run that died keeps others from the model."""
    busy: Literal["wait", "end"] = "wait"
    """What a run does while another one has the model."""
    license: str | None = None
    """Under which the model may be used, best as an SPDX expression."""


@dataclass(frozen=True)
class Version:
    """One version of the registered model, with our tags (without their prefix)."""

    name: str
    number: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    mlflow_run: str
    """The MLflow run that logged it."""
    source: str
    """URI of its model folder."""
    created: int
    """Milliseconds since the epoch."""

    @property
    def evidence(self) -> str:
        """URI of the folder with its evidence."""
        return f"{self.source.rstrip('/').rpartition('/')[0]}/{EVIDENCE_FOLDER}"


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
        self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        aliases, named = self.aliases(), f"name = '{self.model_name}'"
        found = (self.read(version, aliases) for version in all_pages(self.client.search_model_versions, named))
        return sorted(found, key=lambda version: int(version.number))

    def version(self, number: str) -> Version | None:
        """One version; None where there is none of this number."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version(self.model_name, number)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self.read(found, self.aliases())

    def read(self, version: Any, aliases: Mapping[str, str]) -> Version:
        """A version from MLflow's own entity."""
        return Version(
            name=self.model_name,
            number=str(version.version),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(version.version))),
            tags={k.removeprefix(TAG): v for k, v in version.tags.items() if k.startswith(TAG)},
            mlflow_run=version.run_id,
            source=version.source,
            created=version.creation_timestamp,
        )

    def open_run(self, run: str) -> str:
        """Make the MLflow run that shows pipeline run ``run``; gives its id, which the plan's record keeps.

        Nothing finds it by its tag afterwards, which anybody may set on a run of his own.

        Raises:
            LineageError: the experiment keeps its files elsewhere than the settings say.
        """
        experiment = self.client.get_experiment_by_name(self.model_name)
        if experiment and not self._is_meant(location := experiment.artifact_location):
            raise LineageError(
                f"experiment {self.model_name!r} keeps its files in {location}, not in "
                f"{self.artifacts or 'what the server serves'}, and MLflow cannot move it; set registry.artifacts to "
                f"{location}, or choose another model_name"
            )
        experiment_id = experiment.experiment_id if experiment else self._create_experiment()
        tags = {f"{TAG}run": run}
        return str(self.client.create_run(experiment_id, run_name=run, tags=tags).info.run_id)

    def tag(self, version: Version, tags: Mapping[str, Any]) -> None:
        """Set our tags on ``version``."""
        for name, value in tags.items():
            self.client.set_model_version_tag(self.model_name, version.number, f"{TAG}{name}", str(value))

    def point(self, alias: str, number: str | None) -> None:
        """Point ``alias`` at a version; None: at none."""
        if number is None:
            self.client.delete_registered_model_alias(self.model_name, alias)
        else:
            self.client.set_registered_model_alias(self.model_name, alias, number)

    def _is_meant(self, location: str) -> bool:
        """Whether an experiment with its files in ``location`` is the one that the settings speak of."""
        if self.artifacts:
            return location.rstrip("/") == self.artifacts.rstrip("/")
        return location.startswith("mlflow-artifacts:") or not self.tracking_uri.startswith("http")

    def _create_experiment(self) -> str:
        # A store without a server keeps its files beside the database, not in the folder we happen to run in.
        database = self.tracking_uri.removeprefix("sqlite:///")
        beside = None if database == self.tracking_uri else (Path(database).parent / "artifacts").as_uri()
        return str(self.client.create_experiment(self.model_name, artifact_location=self.artifacts or beside))

    def aliases(self) -> dict[str, str]:
        """Alias -> number of the version that has it."""
        found = self.client.search_registered_models(f"name = '{self.model_name}'")
        return {alias: str(number) for model in found for alias, number in model.aliases.items()}


def all_pages(search: Callable[..., Any], *asked: Any) -> Iterator[Any]:
    """What a search of MLflow's finds, page by page."""
    page: str | None = ""
    while page is not None:
        found = search(*asked, page_token=page or None)
        yield from found
        page = found.token or None
