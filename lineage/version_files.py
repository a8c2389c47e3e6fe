"""The files of registered versions, read where MLflow keeps them and compared with the ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lineage.artifacts import (
    Artifacts,
    Listed,
    check_loader,
    digest_of,
    folder_digest,
    listing,
    read_file,
    weights_digest,
)
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Registered
from lineage.places import ChangedError
from lineage.registry import Registry, Version

MOST_DOCUMENT = 16 * 2**20
"""Bytes of a document that the channel hands on."""


@dataclass(frozen=True)
class VersionFiles:
    """What lies in one registry's store, for one move or look: a model folder is read once."""

    registry: Registry
    artifacts: Path | None = None
    """Where ``mlflow-artifacts:`` places lie on this machine."""
    _checked: dict[str, list[Listed]] = field(default_factory=dict)
    """Digest of a model folder -> its files."""

    def version(self, registered: Registered) -> Version:
        """The registry's version.

        Raises:
            LineageError: there is none, or MLflow would load another one.
        """
        number, found = registered.version, self.registry.version(registered.version)
        if found is None:
            raise LineageError(f"{registered.name} is not in the registry any more")
        if found.mlflow_run != registered.mlflow_run:
            raise LineageError(f"{registered.name} was deleted and made again from another run")
        loaded = self.registry.client.get_model_version_download_uri(registered.model, number)
        if loaded != found.source:
            raise LineageError(f"MLflow shows {registered.name} at {found.source} and loads {loaded}: restore it")
        return found

    def check(self, registered: Registered) -> list[Listed]:
        """The files of a version's model folder, which are those that were registered.

        Raises:
            LineageError: they are not, or they cannot be read.
        """
        if registered.folder in self._checked:
            return self._checked[registered.folder]
        version, what = self.version(registered), registered.name
        with self._reader() as reader:
            folder = reader.open(version.source)
            files = listing(folder)
            if weights_digest(files) != registered.candidate:
                told = f"digest {weights_digest(files)}, the ledger says {registered.candidate}; restore them"
                raise ChangedError(f"the weights of {what} were changed: {told}")
            if folder_digest(files) != registered.folder:
                told = f"whoever loads the version would run it: restore {version.source}"
                raise ChangedError(f"what lies around the weights of {what} was changed: {told}")
            check_loader(folder, files)
        self._checked[registered.folder] = files
        return files

    def documents(self, registered: Registered, names: Sequence[str]) -> dict[str, bytes]:
        """The evidence called ``names``, as far as the version has it, by file name.

        Raises:
            LineageError: it is not what was registered, or cannot be read.
        """
        documents: dict[str, bytes] = {}
        version = self.version(registered)
        with self._reader() as reader:
            for name in names:
                top, _, inner = name.partition("/")
                if top not in registered.evidence:
                    continue
                place = reader.open(f"{version.evidence}/{top}")
                found = listing(place)
                content = read_file(place / inner if inner else place, MOST_DOCUMENT)
                known = next((one.digest for one in found if one.name == inner), "")
                if digest_of(found) != registered.evidence[top] or digest_bytes(content) != known:
                    raise ChangedError(f"evidence {name!r} of {registered.name} was changed: restore it")
                documents[Path(name).name] = content
        return documents

    @contextmanager
    def _reader(self) -> Iterator[Artifacts]:
        with tempfile.TemporaryDirectory() as scratch:
            yield Artifacts(self.registry.tracking_uri, self.artifacts, Path(scratch))
