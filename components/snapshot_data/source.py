"""Reading a Hugging Face imagefolder: one folder with images and one metadata file that lists them.

Each row of ``metadata.jsonl`` or ``metadata.parquet`` has ``file_name`` (relative to the folder), ``text``
(the caption) and optionally ``license``, ``consent`` and ``source``. Other keys are left alone. A missing or
empty caption is no error here: what is good enough to train on is the expectation suite's to say.

    >>> check_source(DataSettings(source="/data/portraits"))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.snapshot_data.settings import DataSettings

METADATA = ("metadata.jsonl", "metadata.parquet")
TEXTS = ("text", "license", "consent", "source")
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class SnapshotError(Exception):
    """The source cannot be pinned; the message names the file, row or key and what to do."""


@dataclass(frozen=True)
class Row:
    """One listed image: what the metadata says, and the file it means."""

    file_name: str
    path: Path
    text: str | None
    license: str | None
    consent: str | None
    source: str | None


@dataclass(frozen=True)
class Source:
    """An imagefolder whose metadata has been read and whose listed files exist."""

    folder: Path
    metadata: Path
    rows: tuple[Row, ...]
    """In the order of the metadata file."""

    def unlisted(self) -> list[str]:
        """Images in the folder that the metadata does not list; they are not part of the snapshot."""
        listed = {str(row.path) for row in self.rows}
        files = (path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        return sorted(path.relative_to(self.folder).as_posix() for path in files if str(path) not in listed)


def check_source(settings: DataSettings) -> None:
    """Refuse a source that cannot be pinned, without reading a single image: cheap enough to do before a run.

    Raises:
        SnapshotError: as `read_source` does.
    """
    read_source(settings)


def read_source(settings: DataSettings) -> Source:
    """Read the metadata and find every listed file.

    Raises:
        SnapshotError: no folder, no images, no metadata, a row that is malformed, or a listed file that is
            missing, is not a file, or lies outside the folder.
    """
    folder = _folder(settings.source)
    metadata = _metadata(folder)
    rows_of = _jsonl_rows if metadata.suffix == ".jsonl" else _parquet_rows
    rows = {where: _row(folder, where, content) for where, content in rows_of(metadata)}
    if not rows:
        raise SnapshotError(f"{metadata} lists no image; add one row an image")
    _refuse_links_out(folder, rows)
    return Source(folder, metadata, tuple(rows.values()))


def _folder(source: str) -> Path:
    folder = Path(source.removeprefix("file://"))
    if "://" in source and not source.startswith("file://"):
        raise SnapshotError(f"source {source} is not a local folder; only file:// and absolute paths are read so far")
    if not folder.is_absolute():
        raise SnapshotError(f"source {source!r} is relative; give an absolute path or a file:// URI")
    if not folder.is_dir():
        raise SnapshotError(f"there is no folder {folder}; set data.source to the folder that holds the images")
    if next(folder.iterdir(), None) is None:
        raise SnapshotError(f"folder {folder} is empty; put images and a metadata.jsonl into it")
    return folder


def _metadata(folder: Path) -> Path:
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if not found:
        raise SnapshotError(f"there is no {' or '.join(METADATA)} in {folder}; write one with file_name and text")
    if len(found) > 1:
        raise SnapshotError(f"{folder} has both {' and '.join(METADATA)}; keep the one that is meant")
    return found[0]


def _jsonl_rows(metadata: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = metadata.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SnapshotError(f"{metadata} is not UTF-8 (byte {error.start}); write it as UTF-8") from error
    except OSError as error:
        raise SnapshotError(f"{metadata} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        where = f"{metadata} line {number}"
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SnapshotError(f"{where} is not JSON ({error}); write one object a line") from error
        if not isinstance(content, dict):
            raise SnapshotError(f"{where} is not a JSON object; write one object a line")
        yield where, content


def _parquet_rows(metadata: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = pq.read_schema(metadata).names
        columns = [name for name in ("file_name", *TEXTS) if name in stored]
        contents = pq.read_table(metadata, columns=columns).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SnapshotError(f"{metadata} is not readable as parquet ({error}); write it again") from error
    for number, content in enumerate(contents, start=1):
        yield f"{metadata} row {number}", content


def _row(folder: Path, where: str, content: Mapping[str, Any]) -> Row:
    name = _text(where, content, "file_name")
    if not name:
        raise SnapshotError(f"{where} has no file_name; name the image relative to {folder}")
    path = _image(folder, where, name)
    texts = {key: _text(where, content, key) for key in TEXTS}
    return Row(file_name=PurePosixPath(name).as_posix(), path=path, **texts)


def _text(where: str, content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise SnapshotError(f"{key} in {where} is {value!r}, not text; write it as a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SnapshotError(f"{key} in {where} holds half a character (a lone surrogate); write it again") from error
    return value


def _image(folder: Path, where: str, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise SnapshotError(f"file_name {name!r} in {where} leaves the folder; name a file inside {folder}")
    path = folder / relative
    try:
        is_there = path.is_file()
    except OSError as error:
        raise SnapshotError(f"file_name {name!r} in {where} cannot be looked up: {error}; rename the file") from error
    if not is_there:
        raise SnapshotError(f"file_name {name!r} in {where} is not a file in {folder}; add the file or drop the row")
    return path


def _refuse_links_out(folder: Path, rows: Mapping[str, Row]) -> None:
    """Follow each link once: images that are links, and the folders of the others."""
    places = {row.path if row.path.is_symlink() else row.path.parent: where for where, row in rows.items()}
    root = folder.resolve()
    for place, where in places.items():
        if not place.resolve().is_relative_to(root):
            name = rows[where].file_name
            raise SnapshotError(f"file_name {name!r} in {where} is a link out of {folder}; copy the file into it")
