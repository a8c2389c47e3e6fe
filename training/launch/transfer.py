"""Folders that travel between this machine and shared or object storage, named by URI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training.errors import StorageError, TrainingError


class Place:
    """A folder at a URI or an absolute path."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        with self._told("opened"):
            self._storage, self._root = fsspec.url_to_fs(self.uri)

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri}/{name}")

    @property
    def path(self) -> Path | None:
        """Where it is on this machine, if it is: on a disk or a mounted volume."""
        return Path(self._root) if isinstance(self._storage, LocalFileSystem) else None

    def read(self, name: str) -> str | None:
        """The text of the file ``name``; None where there is none."""
        with self._told(f"asked for {name}"):
            self._storage.invalidate_cache()
            try:
                content: bytes = self._storage.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TrainingError(f"{name} at {self.uri} is no text in UTF-8: {error}; write it anew") from error

    def write(self, name: str, text: str) -> None:
        """Write the file ``name``."""
        with self._told(f"given {name}"):
            self._storage.makedirs(self._root, exist_ok=True)
            self._storage.pipe_file(f"{self._root}/{name}", text.encode("utf-8"))

    def remove(self, *names: str) -> None:
        """Remove files and folders; what is not there is no error."""
        with self._told(f"cleared of {', '.join(names)}"):
            for name in names:
                if self._storage.exists(f"{self._root}/{name}"):
                    self._storage.rm(f"{self._root}/{name}", recursive=True)

    def upload(self, folder: Path) -> None:
        """Copy the files under ``folder`` to here."""
        with self._told(f"given {folder}"):
            for path in sorted(inner for inner in folder.rglob("*") if inner.is_file()):
                target = f"{self._root}/{path.relative_to(folder).as_posix()}"
                self._storage.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
                self._storage.put_file(str(path), target)

    def download(self, folder: Path) -> None:
        """Copy the files here to under ``folder``.

        Raises:
            TrainingError: the name of one leads out of ``folder``; nothing is copied.
        """
        with self._told(f"copied to {folder}"):
            for path, target in [(path, folder / self._inner(path)) for path in self._storage.find(self._root)]:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._storage.get_file(path, str(target))

    def _inner(self, path: str) -> str:
        """A file's name below this place. In object storage that is any text."""
        name = path.removeprefix(f"{self._root}/")
        if name.startswith("/") or ".." in name.split("/"):
            raise TrainingError(f"{path} at {self.uri} has a name that leads out of a folder; remove it there")
        return name

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError) as error:
            raise StorageError(
                f"{self.uri} cannot be {done}: {error}; check that it is there, that this image has the package for "
                "such a place, that this pod may use it, and that no disk is full"
            ) from error
