"""Pinning a source: one row an image in ``manifest.parquet``, and one digest that names them all.

The images stay where they are. The digest covers names, bytes, captions and rights, and neither the order in
which they are listed nor the place where they lie: a copied or reshuffled source is the same data.

    >>> take_snapshot(DataSettings(source="/data/portraits"), Path("/runs/1/snapshot")).digest
    'sha256:…'
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.json import ParseOptions, ReadOptions, read_json

from components.snapshot_data.settings import DataSettings
from components.snapshot_data.source import TEXTS, Row, SnapshotError, read_source
from lineage.digests import digest_bytes, manifest_digest

SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("text", pa.string()),
        ("license", pa.string()),
        ("consent", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("uri", pa.string()),
        ("phash", pa.string()),
    ]
)
"""``sha256`` is written ``sha256:<hex>``; ``uri`` is what fsspec opens: ``file:///…``, not escaped."""


@dataclass(frozen=True)
class Snapshot:
    """A pinned source."""

    digest: str
    """Of the manifest's rows without their ``uri``."""
    rows: int
    bytes: int
    """Of all images together."""
    metadata: Path
    """The metadata file that was read."""
    unlisted: tuple[str, ...]
    """Images in the folder that the metadata does not list, and that are therefore not in the snapshot."""


def take_snapshot(settings: DataSettings, target: Path) -> Snapshot:
    """Read every listed image once and write ``manifest.parquet`` into ``target``, whole or not at all.

    Raises:
        SnapshotError: as `components.snapshot_data.source.read_source` does, or an image cannot be read.
    """
    source = read_source(settings)
    manifest = sorted((_manifest_row(row) for row in source.rows), key=_order)
    target.mkdir(parents=True, exist_ok=True)
    partial = target / "manifest.parquet.partial"
    pq.write_table(_table(manifest), partial)
    partial.replace(target / "manifest.parquet")
    return Snapshot(
        digest=manifest_digest(manifest),
        rows=len(manifest),
        bytes=sum(row["bytes"] for row in manifest),
        metadata=source.metadata,
        unlisted=tuple(source.unlisted()),
    )


def _manifest_row(row: Row) -> dict[str, Any]:
    try:
        content = row.path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{row.path} cannot be read: {error}; make it readable or drop its row") from error
    described = {key: getattr(row, key) for key in ("file_name", *TEXTS)}
    return {
        **described,
        "sha256": digest_bytes(content),
        "bytes": len(content),
        "split": "train",
        "uri": f"file://{row.path}",
        "phash": None,
    }


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Through JSON, because `pyarrow.Table.from_pylist` loads pandas: longer than all the rest takes."""
    lines = [json.dumps(row).encode() for row in rows]
    whole_rows = ReadOptions(block_size=max(2**20, 2 * max(map(len, lines))))
    return read_json(io.BytesIO(b"\n".join(lines)), whole_rows, ParseOptions(explicit_schema=SCHEMA))


def _order(row: dict[str, Any]) -> tuple[tuple[bool, str], ...]:
    """By file name; the rest decides where a file is listed twice. Null sorts before text."""
    return tuple((row[key] is not None, row[key] or "") for key in ("file_name", *TEXTS))
