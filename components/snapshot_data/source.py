"""The three kinds of sources, read as one: rows that name an image, its caption, rights and split.

- an **imagefolder** (Hugging Face): images, and ``metadata.jsonl`` or ``metadata.parquet`` with ``file_name``
  (relative to the folder), ``text`` and optionally ``license``, ``consent``, ``source``, ``split``;
- **parquet** files with the images inside: a column of bytes, or of ``{bytes, path}``, beside the same columns;
- a **folder with captions** (kohya): ``a.txt`` beside ``a.png``.

Other columns are left alone. A missing or empty caption is no error here: what is good enough to train on is the
expectation suite's to say.

    >>> open_source(DataSettings(source="s3://portraits/2026-07"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Literal

from components.snapshot_data.folder import Folder, RefusedError, SnapshotError, list_folder, plain_name
from components.snapshot_data.metadata import (
    jsonl_rows,
    parquet_contents,
    parquet_file,
    parquet_rows,
    stated_columns,
    texts,
)
from components.snapshot_data.settings import DataSettings
from lineage.pictures import PARQUET, open_file, read_bytes
from lineage.places import reaching

METADATA = ("metadata.jsonl", "metadata.parquet")
IMAGES_AT_ONCE = 64
"""Images of a parquet file in memory at once."""

Known = Callable[[str, str], bool]
"""Whether the image at a URI with a stamp was read before, so that its bytes are not needed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One listed image: what the source says of it, and where it lies."""

    row: int
    """Counted from 1, as the source lists it."""
    file_name: str
    texts: Mapping[str, str | None]
    """Caption, rights and split."""
    uri: str
    stamp: str
    """Changes with the image; empty where that cannot be told."""
    content: bytes | None = None
    """The image, where it had to be read to list it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be pinned: one of ``refused.parquet``."""

    row: int
    file_name: str | None
    reason: str
    value: str | None


@dataclass(frozen=True)
class Source:
    """A source whose files have been listed; nothing has been read."""

    kind: Literal["imagefolder", "parquet", "captions"]
    folder: Folder
    metadata: tuple[str, ...]
    """The files that list the images."""
    rights: Mapping[str, str]

    def rows(self, known: Known = lambda uri, stamp: False) -> Iterator[Row | Refused]:
        """Every row, in the source's order.

        Raises:
            SnapshotError, PictureError: metadata cannot be reached or read at all.
        """
        if self.kind == "parquet":
            return self._inside(known)
        return self._captioned() if self.kind == "captions" else self._listed()

    def unlisted(self, listed: set[str]) -> list[str]:
        """Images in the folder that no row names; they are not part of the snapshot."""
        return [] if self.kind == "parquet" else sorted(set(self.folder.images()) - listed)

    def _listed(self) -> Iterator[Row | Refused]:
        name = self.metadata[0]
        with self._open(name) as stream:
            rows = jsonl_rows(stream) if name.endswith(".jsonl") else parquet_rows(stream, self.folder.place(name))
            for number, content in rows:
                said = None if isinstance(content, RefusedError) else content.get("file_name")
                yield _or_refused(number, said, self._row, content)

    def _row(self, number: int, content: Mapping[str, Any] | RefusedError) -> Row:
        if isinstance(content, RefusedError):
            raise content
        name, stamp = self.folder.find(content.get("file_name"))
        return Row(number, name, texts(content, self.rights), self.folder.place(name), stamp)

    def _captioned(self) -> Iterator[Row | Refused]:
        for number, name in enumerate(sorted(self.folder.images()), start=1):
            yield _or_refused(number, name, self._beside, name)

    def _beside(self, number: int, name: str) -> Row:
        """An image with the caption that lies beside it."""
        caption = str(PurePosixPath(name).with_suffix(".txt"))
        text = self._caption(caption) if caption in self.folder.files else None
        return self._row(number, {"file_name": name, "text": text})

    def _caption(self, name: str) -> str:
        content = read_bytes(self.folder.place(name))
        try:
            return content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise RefusedError(f"{name} is not UTF-8 (byte {error.start}); write it as UTF-8", content) from error

    def _inside(self, known: Known) -> Iterator[Row | Refused]:
        number = 0
        for name in self.metadata:
            place, stamp = self.folder.place(name), self.folder.files[name]
            with self._open(name) as stream, parquet_file(stream, place) as file:
                column, columns = _image_column(file.schema_arrow, place), stated_columns(file)
                if not all(known(cell_uri(place, column, row), stamp) for row in range(file.metadata.num_rows)):
                    columns.append(column)
                for row, content in enumerate(parquet_contents(file, columns, IMAGES_AT_ONCE)):
                    number += 1
                    yield _or_refused(number, content.get("file_name"), self._embedded, name, row, column, content)

    def _embedded(self, number: int, name: str, row: int, column: str, content: Mapping[str, Any]) -> Row:
        """A row of a parquet file, whose ``content`` has the image unless it is known."""
        plain = plain_name(content["file_name"], name) if "file_name" in content else f"{name}/{row:08d}"
        cell, uri = content.get(column), cell_uri(self.folder.place(name), column, row)
        image = cell.get("bytes") if isinstance(cell, dict) else cell
        if image is None and column in content:
            raise RefusedError(f"the row has no image in column {column}; add it or drop the row")
        return Row(number, plain, texts(content, self.rights), uri, self.folder.files[name], image)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        place = self.folder.place(name)
        with reaching(place), open_file(place) as stream:
            yield stream


def _or_refused(number: int, said: object, make: Callable[..., Row], *about: Any) -> Row | Refused:
    """The row that ``make`` gives, or why it gives none; ``said`` is the ``file_name`` that it states."""
    try:
        return make(number, *about)
    except RefusedError as error:
        name = said.encode(errors="replace").decode() if isinstance(said, str) else None
        return Refused(number, name, error.reason.encode(errors="replace").decode(), error.value)


def open_source(settings: DataSettings) -> Source:
    """List the source and find out its kind, without reading a single image: cheap enough to do before a run.

    Raises:
        SnapshotError: nothing is there, it is of no known kind, or it cannot be reached.
    """
    folder, rights = list_folder(settings.source), {str(key): value for key, value in settings.rights.items()}
    lists = [name for name in METADATA if name in folder.files]
    if len(lists) > 1:
        raise SnapshotError(f"{settings.source} has both {' and '.join(lists)}; keep the one that is meant")
    if lists:
        return Source("imagefolder", folder, tuple(lists), rights)
    images, inside = any(True for _ in folder.images()), sorted(n for n in folder.files if n.endswith(".parquet"))
    if inside and not images:
        return Source("parquet", folder, tuple(inside), rights)
    if images and any(name.endswith(".txt") for name in folder.files):
        return Source("captions", folder, (), rights)
    raise SnapshotError(
        f"there is no {' or '.join(METADATA)} in {settings.source}, no parquet file with images, and no caption .txt "
        "beside an image; write a metadata.jsonl with file_name and text"
    )


def cell_uri(place: str, column: str, row: int) -> str:
    """Where an image inside a parquet file lies, as `lineage.pictures` reads it."""
    return f"{PARQUET}{place}#{column}/{row}"


def _image_column(schema: Any, place: str) -> str:
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) != 1:
        what = f"{len(found)} columns of bytes ({', '.join(found)})" if found else "no column of bytes"
        raise SnapshotError(f"{place} has {what} among {', '.join(schema.names)}; one column must hold the images")
    return str(found[0])
