"""The files of governed versions never change through the server.

The check stands where a file is written or deleted, in the artifact repositories that the server's process makes, and
not where requests come in: there a path can be written in many ways, here it is the one that is used.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException, _UnsupportedMultipartUploadException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as repositories
from mlflow.utils.file_utils import local_file_uri_to_path

from infra.governed.settings import Settings
from infra.governed.writes import Writes
from lineage.entries import LedgerError

RUN = re.compile(r"/([0-9a-f]{32})/artifacts(?=/|$)")
"""Where MLflow keeps the files of a run, below its experiment's place."""
PROXIED = "/mlflow-artifacts/artifacts/"


def place(uri: str, destination: str) -> str:
    """Where ``uri`` really is, in one spelling.

    Args:
        destination: where this server keeps what it serves as ``mlflow-artifacts:``.
    """
    parts = urlsplit(uri)
    served = parts.path if parts.scheme == "mlflow-artifacts" else None
    if parts.scheme in ("http", "https") and PROXIED in parts.path:
        served = parts.path.split(PROXIED, 1)[1]
    if served is not None:
        return place(f"{destination.rstrip('/')}/{served.lstrip('/')}", destination)
    if parts.scheme in ("", "file"):
        return os.path.realpath(str(local_file_uri_to_path(uri)))
    return f"{parts.scheme}://{parts.netloc}{posixpath.normpath('/' + parts.path.lstrip('/'))}"


class GuardedFolders:
    """The folders of governed versions, and the check that nothing in them is touched."""

    def __init__(self, destination: str, writes: Writes, protected: Callable[[], Mapping[str, str]]) -> None:
        """Guard what ``protected`` gives at each check: the `place` of a version's folder -> the version's name."""
        self.destination, self.writes, self.protected = destination, writes, protected

    @contextmanager
    def writing(self, target: str) -> Iterator[None]:
        """Refuse a target inside a governed version's folder, and hold the run that it lies in for the block.

        Raises:
            MlflowException: it is one (HTTP 403).
        """
        found = self._place(target)
        with self.writes.into(RUN.findall(found)):
            kept = self.protected()
            self._refuse(next((kept[above] for above in _upwards(found) if above in kept), None), target)
            yield

    @contextmanager
    def deleting(self, target: str) -> Iterator[None]:
        """The same for what is deleted, which must not hold a governed version's folder either."""
        with self.writing(target):
            found = self._place(target)
            self._refuse(next((name for kept, name in self.protected().items() if inside(kept, found)), None), target)
            yield

    def check_location(self, target: str, settings: Settings) -> None:
        """Refuse to keep an experiment's files where the server keeps its own.

        Raises:
            LedgerError: on this machine it is not within what is served, or it touches the witness or the channel.
        """
        found, served = self._place(target), place("mlflow-artifacts:/", self.destination)
        if "://" not in found and not inside(found, served):
            raise LedgerError(f"{target} is on the server's own disk, beside what it serves: choose another location")
        for kept in (settings.witness, settings.channel):
            if kept and touches(found, place(kept, self.destination)):
                raise LedgerError(f"{target} is where the server keeps its witness or channel: choose another location")

    def _place(self, target: str) -> str:
        if ".." in _unquoted(target).split("/"):
            raise MlflowException(f"{target} goes up with '..'; name the place itself", error_code=PERMISSION_DENIED)
        return place(target, self.destination)

    def _refuse(self, name: str | None, target: str) -> None:
        if name:
            raise MlflowException(
                f"the ledger keeps {name}: its files never change ({target})", error_code=PERMISSION_DENIED
            )

    def install(self) -> None:
        """Guard every artifact repository made in this process; ``mlflow-artifacts:`` means the destination itself."""
        for scheme, make in list(repositories.get_registered_artifact_repositories().items()):
            repositories.register(scheme, self._guarded(make))

        def served(uri: str, **more: Any) -> Any:
            return repositories.get_artifact_repository(place(uri, self.destination), **more)

        repositories.register("mlflow-artifacts", served)

    def _guarded(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(uri: str, **more: Any) -> Any:
            repository = make(uri, **more)
            kind = type(repository)
            # A subclass, so that MLflow still sees what the repository can do.
            repository.__class__ = type(kind.__name__, (_GuardedWrites, kind), {"folders": self})
            return repository

        return guarded


def _unquoted(path: str) -> str:
    while (once := unquote(path)) != path:
        path = once
    return path


def inside(path: str, folder: str) -> bool:
    """Whether a `place` is ``folder`` or lies in it."""
    return folder in _upwards(path)


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


class _GuardedWrites:
    """All ways in which MLflow's artifact repositories write and delete."""

    folders: GuardedFolders
    artifact_uri: str

    def _writing(self, *path: str | None) -> AbstractContextManager[None]:
        return self.folders.writing(self._target(*path))

    def _target(self, *path: str | None) -> str:
        return posixpath.join(self.artifact_uri, *[part.lstrip("/") for part in path if part])

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> Any:
        with self._writing(artifact_path, posixpath.basename(local_file)):
            return super().log_artifact(local_file, artifact_path)  # type: ignore[misc]

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> Any:
        with self._writing(artifact_path):
            for file in Path(local_dir).rglob("*"):
                self._check(artifact_path, file.relative_to(local_dir).as_posix())
            return super().log_artifacts(local_dir, artifact_path)  # type: ignore[misc]

    def log_artifact_from_stream(self, stream: Any, filename: str, artifact_path: str | None = None) -> Any:
        self._check(artifact_path, filename)
        return super().log_artifact_from_stream(stream, filename, artifact_path)  # type: ignore[misc]

    async def log_artifact_from_async_stream(self, stream: Any, filename: str, artifact_path: str | None = None) -> Any:
        await asyncio.to_thread(self._check, artifact_path, filename)
        return await super().log_artifact_from_async_stream(  # type: ignore[misc]
            stream, filename, artifact_path=artifact_path
        )

    def _check(self, *path: str | None) -> None:
        with self._writing(*path):
            pass

    def _publish_staged_artifact(self, staged: str, destination: str, *more: Any) -> Any:
        # A stream lasts as long as its sender likes: this is its end.
        with self.folders.writing(destination):
            return super()._publish_staged_artifact(staged, destination, *more)  # type: ignore[misc]

    def delete_artifacts(self, artifact_path: str | None = None) -> Any:
        with self.folders.deleting(self._target(artifact_path)):
            return super().delete_artifacts(artifact_path)  # type: ignore[misc]

    def create_multipart_upload(self, local_file: str, num_parts: int = 1, artifact_path: str | None = None) -> Any:
        # Elsewhere (Azure) a part's URL writes the whole file, and long after this check.
        if not self.artifact_uri.startswith(("s3:", "gs:")):
            raise _UnsupportedMultipartUploadException()
        with self._writing(artifact_path, posixpath.basename(local_file)):
            return super().create_multipart_upload(local_file, num_parts, artifact_path)  # type: ignore[misc]

    def complete_multipart_upload(
        self, local_file: str, upload_id: str, parts: Any = None, artifact_path: str | None = None
    ) -> Any:
        with self._writing(artifact_path, posixpath.basename(local_file)):
            return super().complete_multipart_upload(local_file, upload_id, parts, artifact_path)  # type: ignore[misc]

    def create_presigned_upload_url(self, artifact_path: str, expiration: int = 900) -> Any:
        raise MlflowException(
            "this server gives no URLs that write: they would still count when the ledger keeps what lies there; "
            "upload through the server",
            error_code=PERMISSION_DENIED,
        )


def touches(one: str, other: str) -> bool:
    """Whether one of two places lies in the other."""
    return inside(one, other) or inside(other, one)
