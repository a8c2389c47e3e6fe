"""Copies of images, each under the digest of its bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
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
        """Whether there is a copy; what there is was listed once."""
        return hex_of(digest) in self._there

    @cached_property
    def _there(self) -> set[str]:
        with _storing(self.uri):
            root = self.uri.removeprefix("file://")
            found = self.filesystem.find(root) if self.filesystem.exists(root) else ()
            return {path.rpartition("/")[2] for path in found}

    def put(self, digest: str, content: bytes) -> None:
        """Write a copy, whole or not at all, unless there is one.

        Raises:
            SnapshotError: it cannot be written.
        """
        if self.has(digest):
            return
        path = self.place(digest).removeprefix("file://")
        with _storing(self.uri):
            if self.uri.startswith("file://"):
                partial = Path(f"{path}.{os.getpid()}.{threading.get_ident()}")
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                partial.replace(path)
            else:
                self.filesystem.pipe_file(path, content)
        self._there.add(hex_of(digest))


@contextmanager
def _storing(uri: str) -> Iterator[None]:
    try:
        with reaching(uri):
            yield
    except PictureError as error:
        raise SnapshotError(f"the store of copies: {error}") from error
