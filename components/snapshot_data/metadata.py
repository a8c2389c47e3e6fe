"""Reading what metadata files say of images, row by row; a row that cannot be read is refused, not the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from components.snapshot_data.folder import RefusedError, SnapshotError
from lineage.pictures import ROWS

LONGEST_LINE = 2**20
"""Bytes of one line of ``metadata.jsonl``."""
TEXTS = ("text", "license", "consent", "source")
SPLITS = ("train", "validation", "test")
Said = tuple[int, Mapping[str, Any] | RefusedError]
"""Number of the row, counted from 1, and what it says, or why that is unknown."""


def jsonl_rows(stream: IO[bytes]) -> Iterator[Said]:
    """The objects of a JSON lines file; blank lines count, but are nothing."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)
            yield number, RefusedError(f"the line is longer than {LONGEST_LINE} bytes; shorten it")
        elif line.strip():
            yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json_object(line: bytes) -> Mapping[str, Any] | RefusedError:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RefusedError(f"the line is not UTF-8 (byte {error.start}); write it as UTF-8", line)
    except (ValueError, RecursionError) as error:
        return RefusedError(f"the line is not JSON ({error}); write one object a line", line)
    if not isinstance(content, dict):
        return RefusedError("the line is not a JSON object; write one object a line", line)
    return content


def parquet_rows(stream: IO[bytes], where: str) -> Iterator[Said]:
    """The rows of a parquet file that names images.

    Raises:
        SnapshotError: it is not parquet, or has no ``file_name``.
    """
    with parquet_file(stream, where) as file:
        columns = stated_columns(file)
        if "file_name" not in columns:
            raise SnapshotError(f"{where} has no column file_name, only {', '.join(file.schema_arrow.names)}")
        yield from enumerate(parquet_contents(file, columns, ROWS), start=1)


@contextmanager
def parquet_file(stream: IO[bytes], where: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, to be read within the block.

    Raises:
        SnapshotError: it is not parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield pq.ParquetFile(stream)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SnapshotError(f"{where} is not readable as parquet ({error}); write it again") from error


def stated_columns(file: Any) -> list[str]:
    """The columns of a parquet file that say what a row of metadata may."""
    return [name for name in ("file_name", *TEXTS, "split") if name in file.schema_arrow.names]


def parquet_contents(file: Any, columns: list[str], at_once: int) -> Iterator[dict[str, Any]]:
    """What the rows of a parquet file hold in some columns."""
    for batch in file.iter_batches(batch_size=at_once, columns=columns):
        yield from batch.to_pylist()


def texts(content: Mapping[str, Any], rights: Mapping[str, str]) -> dict[str, str | None]:
    """Caption, rights and split that a row states, with ``rights`` where it states none.

    Raises:
        RefusedError: one of them is not text, or no split.
    """
    said = {key: _text(key, content.get(key)) for key in (*TEXTS, "split")}
    if said["split"] not in (None, *SPLITS):
        raise RefusedError(f"split is {said['split']!r}; write {', '.join(SPLITS)}, or nothing", said["split"])
    return {key: rights.get(key) if value is None else value for key, value in said.items()}


def _text(key: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RefusedError(f"{key} is {value!r:.80}, not text; write it as a string", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(f"{key} holds half a character (a lone surrogate); write it again", value) from error
    return value
