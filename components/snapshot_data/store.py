"""Copies of images, each under the digest of its bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.snapshot_data.folder import SnapshotError
from components.snapshot_data.settings import DataSettings
from lineage.digests import hex_of
from lineage.pictures import PictureError, filesystem_of
from lineage.places import reaching


class Store:
    """A folder, local or in an object store: ``ab/ab12…`` holds the image with digest ``sha256:ab12…``."""

    def __init__(self, uri: str) -> None:
        self.uri = (uri if "://" in uri else f"file://{uri}").rstrip("/")
        self.filesystem: Any = filesystem_of(self.uri)

    @staticmethod
    def of(settings: DataSettings, state: Path | None) -> Store | None:
        """The store that the settings ask for.

        Raises:
            SnapshotError: there is no place for it, or it is not one that images are read from.
        """
        if not settings.copying:
            return None
        place = settings.store or (str(state.absolute() / "data" / "images") if state else "")
        if not place:
            raise SnapshotError("data.copy is set, and there is no folder for copies; set data.store")
        try:
            return Store(place)
        except PictureError as error:
            raise SnapshotError(f"data.store: {error}") from error

    def place(self, digest: str) -> str:
        """The URI of a copy."""
        name = hex_of(digest)
        return f"{self.uri}/{name[:2]}/{name}"

    def has(self, digest: str) -> bool:
        """Whether there is a copy."""
        with _storing(self.uri):
            return bool(self.filesystem.exists(self._path(digest)))

    def put(self, digest: str, content: bytes) -> None:
        """Write a copy, whole or not at all, unless there is one.

        Raises:
            SnapshotError: it cannot be written.
        """
        if self.has(digest):
            return
        path = self._path(digest)
        with _storing(self.uri):
            if not self.uri.startswith("file://"):
                self.filesystem.pipe_file(path, content)
                return
            partial = Path(f"{path}.{os.getpid()}.{threading.get_ident()}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)

    def _path(self, digest: str) -> str:
        return self.place(digest).removeprefix("file://")


@contextmanager
def _storing(uri: str) -> Iterator[None]:
    try:
        with reaching(uri):
            yield
    except PictureError as error:
        raise SnapshotError(f"the store of copies: {error}") from error
