"""The files below a source: names, sizes, and a stamp that changes when a file does. Nothing is read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lineage.digests import LineageError
from lineage.pictures import PictureError, filesystem_of
from lineage.places import reaching

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SETTLED = 100_000_000
"""Nanoseconds. Younger files may change again without a new stamp: file systems count in ticks."""


class SnapshotError(LineageError):
    """The source cannot be pinned; the message names the file, row or key and what to do."""


class RefusedError(Exception):
    """One row cannot be pinned.

    Args:
        reason: what is wrong, and what to do.
        value: what the row says.
    """

    def __init__(self, reason: str, value: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.value = None if value is None else repr(value)[:200]


@dataclass(frozen=True)
class Folder:
    """A folder, local or in an object store, and all files below it. Links are not followed."""

    uri: str
    files: dict[str, str]
    """Relative name -> stamp, which changes with the file; empty where that would not show."""

    def images(self) -> Iterator[str]:
        """Names of the files that look like images."""
        return (name for name in self.files if os.path.splitext(name)[1].lower() in SUFFIXES)  # noqa: PTH122

    def place(self, name: str) -> str:
        """The URI of a file."""
        return f"{self.uri}/{name}"

    def find(self, name: object) -> tuple[str, str]:
        """The plain name and the stamp of the file that a row's ``file_name`` means.

        Raises:
            RefusedError: it is no name, leaves the folder, by itself or by a link, or nothing is there.
        """
        if isinstance(name, str) and name in self.files:
            return name, self.files[name]
        plain = plain_name(name, self.uri)
        stamp = self.files[plain] if plain in self.files else self._behind_links(plain)
        if stamp is None:
            raise RefusedError(f"file_name {name!r} is not a file in {self.uri}; add it or drop the row", name)
        return plain, stamp

    def _behind_links(self, name: str) -> str | None:
        if not self.uri.startswith("file://"):
            return None
        root = Path(self.uri.removeprefix("file://"))
        try:
            real = (root / name).resolve()
            status = real.stat() if real.is_file() else None
        except (OSError, ValueError, RuntimeError) as error:
            raise RefusedError(f"file_name {name!r} cannot be looked up: {error}; rename the file", name) from error
        if not real.is_relative_to(root.resolve()):
            raise RefusedError(f"file_name {name!r} is a link out of {root}; copy the file into it", name)
        return _stamp(status) if status else None

    def fingerprint(self) -> str:
        """Changes when any file does; empty where that cannot be told."""
        known = hashlib.sha256()
        for name, stamp in sorted(self.files.items()):
            if not stamp:
                return ""
            known.update(f"{name}\0{stamp}\0".encode(errors="surrogateescape"))
        return known.hexdigest()


def plain_name(name: object, where: str) -> str:
    """The plain spelling of a row's ``file_name``, relative to ``where``.

    Raises:
        RefusedError: it is no name, or leads out of there.
    """
    if not isinstance(name, str) or not name:
        raise RefusedError(f"file_name is {name!r}; name the image relative to {where}", name)
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise RefusedError(f"file_name {name!r} leaves the folder; name a file inside {where}", name)
    return relative.as_posix()


def list_folder(source: str) -> Folder:
    """List what is below ``source``; of a single file, its folder with only that file.

    Raises:
        SnapshotError: nothing is there, it is empty, or it cannot be reached or read.
    """
    uri = source.rstrip("/") if "://" in source else f"file://{source.rstrip('/')}"
    try:
        folder = _list_local(uri) if uri.startswith("file://") else _list_remote(uri)
    except PictureError as error:
        raise SnapshotError(f"data.source {source}: {error}") from error
    if not folder.files:
        raise SnapshotError(f"nothing is in {source}; put images and a metadata.jsonl there, or correct data.source")
    return folder


def _list_local(uri: str) -> Folder:
    root = Path(uri.removeprefix("file://"))
    if not root.is_absolute():
        raise SnapshotError(f"source {str(root)!r} is relative; give an absolute path or a URI")
    if root.is_file():
        return Folder(f"file://{root.parent}", {root.name: _stamp(root.stat())})
    if not root.is_dir():
        raise SnapshotError(f"there is no folder {root}; set data.source to the folder that holds the images")
    files: dict[str, str] = {}
    pending = [("", str(root))]
    with reaching(uri):
        while pending:
            prefix, path = pending.pop()
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((f"{prefix}{entry.name}/", entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        files[prefix + entry.name] = _stamp(entry.stat(follow_symlinks=False))
    return Folder(uri, files)


def _list_remote(uri: str) -> Folder:
    filesystem_of(uri).clear_instance_cache()  # each thread has an instance, and an old one knows an old listing
    filesystem = filesystem_of(uri)
    with reaching(uri):
        root = filesystem._strip_protocol(uri)
        try:
            found = filesystem.find(root, detail=True)
        except FileNotFoundError as error:
            raise SnapshotError(
                f"there is no {uri}: no such bucket, repository or folder; correct data.source"
            ) from error
    files = {}
    for path, facts in found.items():
        said = next((str(facts[key]) for key in _STAMPS if facts.get(key)), "")
        files[path.removeprefix(root).lstrip("/")] = f"{facts.get('size')}-{said}" if said else ""
    if "" in files:  # the source is a file itself
        return Folder(uri.rpartition("/")[0], {uri.rpartition("/")[2]: files[""]})
    return Folder(uri, files)


_STAMPS = ("ETag", "etag", "blob_id", "generation", "LastModified", "mtime")
"""What S3, Google and the Hub say of a file that changes with it; the first that is there counts."""


def _stamp(status: os.stat_result) -> str:
    age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    stamp = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"
    return stamp if age > SETTLED else ""
