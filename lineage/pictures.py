"""Reading what a manifest names: its rows, and the bytes behind each ``uri``, checked against the row's digest.

A ``uri`` is what `fsspec` opens, not escaped: ``file:///data/a b.png``, ``s3://bucket/key``, ``gs://``, ``hf://``. A
picture inside a parquet file is ``parquet+<uri of the file>#<column>/<row>``, rows counted from 0.

    >>> for row in manifest_rows(snapshot / "manifest.parquet"):
    ...     content = read_picture(row)
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec

from lineage.digests import LineageError, digest_bytes
from lineage.places import ChangedError, PlaceError, UnreachableError, reaching

if TYPE_CHECKING:
    from PIL import Image

SCHEMES = ("file", "s3", "gs", "hf")
"""Where pictures may lie. fsspec knows more, among them some that run programs or ask strangers."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What Pillow may decode; others run programs, or are not for photographs."""
HASH_SIDE = 32
"""Pixels of the grey square that `phash` looks at."""
PARQUET = "parquet+"
ROWS = 8192
"""Rows of a manifest held at once."""
MOST_ROWS = 10_000_000
"""Rows of a table that somebody may have made to unpack to more than fits."""


PictureError = PlaceError
"""A picture cannot be read; the message says why and what to do."""


def manifest_rows(
    manifest: Path | BinaryIO, columns: Sequence[str] | None = None, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a ``manifest.parquet``, or a table like it, in their order, with only a few of them in memory.

    Args:
        most: bytes of what is in the rows, for a file that somebody may have made to unpack to more than fits; it
            takes twice as long.

    Raises:
        LineageError: it holds more, or something else than text and numbers.
    """
    import pyarrow.parquet as pq

    texts = _texts(manifest, columns) if most else []
    # As dictionaries, or one long text that a thousand rows share would be unpacked a thousand times.
    with pq.ParquetFile(manifest, read_dictionary=texts) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            if most:
                batch, most = _unpacked(batch, most)
            yield from batch.to_pylist()


def _texts(manifest: Path | BinaryIO, columns: Sequence[str] | None) -> list[str]:
    """The columns of text; nothing but numbers is beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(manifest) as file:
        kinds = {field.name: field.type for field in file.schema_arrow if columns is None or field.name in columns}
        rows = file.metadata.num_rows
    texts = [n for n, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    plain = [n for n, kind in kinds.items() if pa.types.is_primitive(kind) or pa.types.is_null(kind)]
    if (strange := sorted(kinds.keys() - {*texts, *plain})) or rows > MOST_ROWS:
        raise LineageError(f"{rows} rows, with no text or numbers in {strange}: not read")
    return texts


def _unpacked(batch: Any, most: int) -> tuple[Any, int]:
    """A batch without dictionaries, and how much more may come."""
    import pyarrow as pa
    import pyarrow.compute as pc

    made = []
    for column in batch.columns:
        packed = pa.types.is_dictionary(column.type)
        lengths = pc.binary_length(column.dictionary).take(column.indices) if packed else None
        most -= column.nbytes if lengths is None else pc.sum(lengths).as_py() or 0
        if most <= 0:
            raise LineageError("its rows hold more bytes than are read of such a file")
        made.append(column.dictionary_decode() if packed else column)
    return pa.RecordBatch.from_arrays(made, batch.schema.names), most


def trained_on(row: Mapping[str, Any]) -> bool:
    """Whether a manifest row is for training; rows of another ``split`` are held out."""
    return (row.get("split") or "train") == "train"


def read_picture(row: Mapping[str, Any]) -> bytes:
    """The bytes of the picture that a manifest row (``file_name``, ``sha256``, ``uri``) names.

    Raises:
        GoneError: nothing is there.
        ChangedError: it changed since the snapshot.
        PictureError: it cannot be reached.
    """
    content = read_bytes(row["uri"])
    if (found := digest_bytes(content)) != row["sha256"]:
        raise ChangedError(
            f"{row['file_name']} at {row['uri']} has changed: its digest was {row['sha256']} and now is {found}; "
            "restore the file, or take a new snapshot"
        )
    return content


def read_bytes(uri: str) -> bytes:
    """What lies at a manifest's ``uri``, not checked.

    Raises:
        PictureError: nothing is there, or it cannot be reached.
    """
    if uri.startswith(PARQUET):
        place, _, cell = uri.removeprefix(PARQUET).rpartition("#")
        column, _, row = cell.rpartition("/")
        with reaching(uri):
            return _cell(place, column, int(row))
    with reaching(uri):
        if uri.startswith("file://"):
            return Path(uri.removeprefix("file://")).read_bytes()
        return bytes(filesystem_of(uri).cat_file(uri))


def filesystem_of(uri: str) -> Any:
    """The fsspec filesystem that opens ``uri``.

    Raises:
        PictureError: pictures are not read from there, or the package that could is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise UnreachableError(f"{uri} is not read: pictures lie at {', '.join(f'{name}://' for name in SCHEMES)}")
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UnreachableError(f"{uri} cannot be read here: {error}; install what it names") from error


def _cell(place: str, column: str, row: int) -> bytes:
    stamp = Path(place.removeprefix("file://")).stat().st_mtime_ns if place.startswith("file://") else 0
    ends = _row_group_ends(place, stamp)
    group = bisect.bisect_right(ends, row)
    cells = _row_group(place, stamp, column, group)
    value = cells[row - (ends[group - 1] if group else 0)].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    return bytes(content or b"")


def open_file(uri: str) -> Any:
    """A seekable stream of what lies at ``uri``."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://")).open("rb")
    return io.BufferedReader(filesystem_of(uri).open(uri, "rb"))


@lru_cache(maxsize=64)
def _row_group_ends(place: str, stamp: int) -> list[int]:
    import pyarrow.parquet as pq

    with open_file(place) as stream:
        metadata = pq.read_metadata(stream)
    return list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


@lru_cache(maxsize=3)
def _row_group(place: str, stamp: int, column: str, group: int) -> Any:
    """A column of a row group: what is read in order is read once."""
    import pyarrow.parquet as pq

    with open_file(place) as stream:
        return pq.ParquetFile(stream).read_row_group(group, columns=[column]).column(0)


def phash(image: Image.Image) -> str:
    """64 bits in hexadecimal that stay nearly the same when an image is scaled, recoded or slightly changed.

    The signs, about their median, of the 8 x 8 lowest frequencies of a cosine transform of the image at 32 x 32 in
    grey (pHash: C. Zauner, 2010), in whole numbers, so that every machine finds the same.
    """
    import numpy as np
    from PIL.Image import Resampling

    grey = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Resampling.BILINEAR)
    at = np.pi / HASH_SIDE * (np.arange(HASH_SIDE) + 0.5) * np.arange(8)[:, None]
    cosines = np.rint(2**12 * np.cos(at)).astype(np.int64)
    found = (cosines @ np.asarray(grey, dtype=np.int64) @ cosines.T).ravel()
    return np.packbits(found > int(np.median(found[1:]))).tobytes().hex()
