"""What an audit may look into: the ledger's entries, the records, the artifact store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from securesystemslib.signer import Key

from lineage.digests import LineageError
from lineage.entries import Abandoned, Completed, Entry, Intended, Judged, Registered, State, replay
from lineage.registry import EVIDENCE_FOLDER, WEIGHTS_FOLDER, Registry
from lineage.witness import HighWaterMark

if TYPE_CHECKING:
    from lineage.registry import Version


class MissingError(LineageError):
    """Evidence that the ledger names is not there."""


@dataclass(frozen=True)
class Sources:
    """Where the evidence is. Whatever is left out is reported as missing, or as not proven."""

    entries: Sequence[Entry]
    """The ledger, or an export of it; not yet checked."""
    root: str | Key = ""
    """The root key that must have opened it, or its id."""
    records: str = ""
    """URI of the folder of records."""
    registry: Registry | None = None
    artifacts: Path | None = None
    """Where ``mlflow-artifacts:`` places lie on this machine, so that no server has to be asked."""
    checkpoints: Mapping[str, bytes] | None = None
    """Name -> signed checkpoint: what a witness has."""
    mark: HighWaterMark | None = None

    @property
    def root_id(self) -> str:
        """Id of the root key; empty where none was given."""
        return self.root if isinstance(self.root, str) else self.root.keyid


class History:
    """What the ledger's entries say, by what they are about; only those that hold and count."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.state, self.trouble = _replay(entries)
        said = [(e, e.read()) for e in entries[: self.state.size] if e.index not in self.state.void]
        self.registered = {(b.model, b.version): (e, b) for e, b in said if isinstance(b, Registered)}
        self.judged = {b.verdict: (e, b) for e, b in said if isinstance(b, Judged)}
        self.moves = [(e, b) for e, b in said if isinstance(b, Intended)]
        self.ended = {b.move: (e, b) for e, b in said if isinstance(b, Completed | Abandoned)}
        self.of_weights: dict[str, list[tuple[Entry, Registered]]] = {}
        for entry, body in sorted(self.registered.values(), key=lambda pair: pair[0].index):
            self.of_weights.setdefault(body.candidate, []).append((entry, body))

    @property
    def versions(self) -> list[Registered]:
        """All versions of all models, oldest first."""
        return [body for _, body in sorted(self.registered.values(), key=lambda pair: pair[0].index)]

    def version_with(self, digest: str, before: int | None = None) -> Registered | None:
        """The last version with these weights that was registered before an entry."""
        found = [body for entry, body in self.of_weights.get(digest, []) if before is None or entry.index < before]
        return found[-1] if found else None

    def standing(self, version: Registered) -> str:
        """What a version is now, in the ledger's words."""
        champion = self.state.champion(version.model)
        if version.candidate in self.state.withdrawn:
            return "withdrawn"
        if champion and champion.version == version.version:
            return "champion"
        past = {standing.version for standing in self.state.champions.get(version.model, [])}
        decision = self.state.verdicts[version.verdict].decision
        return "former champion" if version.version in past else f"candidate ({decision})"


def _replay(entries: Sequence[Entry]) -> tuple[State, str]:
    """The state, and why it ends where it does if that is before the last entry."""
    try:
        return replay(entries), ""
    except LineageError as error:
        state = State()
        try:
            for entry in entries:
                state.apply(entry)
        except LineageError:
            return replay(entries[: state.size]), str(error)
        return State(), str(error)


class Store:
    """The artifact store. What lies on this machine is read in place, the rest is fetched into ``scratch`` once."""

    def __init__(self, sources: Sources, scratch: Path) -> None:
        self.sources, self.scratch = sources, scratch
        self._places: dict[str, Path] = {}
        self._versions: dict[str, dict[str, Version]] = {}

    def versions(self, model: str) -> dict[str, Version]:
        """Number -> version, as the registry has them; what it says is checked against the ledger."""
        if model not in self._versions:
            found = self._asked(Registry(self._registry.tracking_uri, model).versions)
            self._versions[model] = {version.number: version for version in found}
        return self._versions[model]

    def weights(self, version: Registered) -> Path:
        """The folder of a version's weights.

        Raises:
            MissingError: it is not there.
        """
        client = self._registry.client
        source = self._asked(lambda: client.get_model_version_download_uri(version.model, version.version))
        return self._place(f"{source}/{WEIGHTS_FOLDER}", f"the weights of version {version.version}")

    def evidence(self, version: Registered, name: str) -> Path:
        """What lies beside the weights under ``name``.

        Raises:
            MissingError: it is not there.
        """
        place = f"{self._evidence(version)}/{name}".rstrip("/")
        return self._place(place, f"evidence {name!r} of version {version.version}")

    def names(self, version: Registered) -> set[str]:
        """The names of all that lies beside the weights."""
        place = self._local(self._evidence(version))
        if place is not None:
            return {path.name for path in place.iterdir()} if place.is_dir() else set()
        listed = self._asked(lambda: self._registry.client.list_artifacts(version.mlflow_run, EVIDENCE_FOLDER))
        return {str(found.path).rsplit("/", 1)[-1] for found in listed}

    @property
    def _registry(self) -> Registry:
        if self.sources.registry is None:
            raise MissingError("there is no registry to look into")
        return self.sources.registry

    def _evidence(self, version: Registered) -> str:
        run = self._asked(lambda: self._registry.client.get_run(version.mlflow_run))
        return f"{run.info.artifact_uri}/{EVIDENCE_FOLDER}"

    def _asked(self, question: Callable[[], Any]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return question()
        except MlflowException as error:
            raise MissingError(f"the registry does not have it: {error}") from error

    def _local(self, uri: str) -> Path | None:
        scheme, colon, _ = uri.partition(":")
        if not colon:
            return Path(uri)
        if scheme == "mlflow-artifacts" and self.sources.artifacts:
            return self.sources.artifacts / unquote(urlsplit(uri).path).lstrip("/")
        return Path(unquote(urlsplit(uri).path)) if scheme == "file" else None

    def _place(self, uri: str, what: str) -> Path:
        place = self._local(uri)
        if place is None:
            place = self._places.get(uri) or self._fetch(uri, what)
            self._places[uri] = place
        if not place.exists():
            raise MissingError(f"{what} is not in the artifact store ({place})")
        return place

    def _fetch(self, uri: str, what: str) -> Path:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        target = self.scratch / str(len(self._places))
        target.mkdir()
        tracking = self._registry.tracking_uri
        try:
            return Path(download_artifacts(artifact_uri=uri, tracking_uri=tracking, dst_path=str(target)))
        except (MlflowException, OSError) as error:
            raise MissingError(f"{what} is not in the artifact store ({uri}): {error}") from error
