"""Pinning a source: one row an image in ``manifest.parquet``, and one digest that names them all.

The images stay where they are, unless they are to be copied. The digest covers names, bytes, captions, rights and
splits, and neither the order in which they are listed nor the place where they lie: a copied or reshuffled source is
the same data. Rows that cannot be pinned go to ``refused.parquet``, each with its reason.

    >>> take_snapshot(DataSettings(source="/data/portraits"), Path("/runs/1/snapshot")).digest
    'sha256:…'
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.snapshot_data.duplicates import perceptual_hash
from components.snapshot_data.folder import SnapshotError
from components.snapshot_data.kept import Kept, Measured
from components.snapshot_data.rows import MANIFEST, REFUSED, settle
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.source import Refused, Row, Source, open_source
from components.snapshot_data.store import Store
from lineage.digests import code_digest, digest_bytes, digest_json, manifest_digest
from lineage.files import whole_folder
from lineage.pictures import ROWS, PictureError, manifest_rows, read_bytes
from lineage.places import GoneError
from lineage.progress import report

READERS = 8
"""Images read at once: object stores answer slowly, and in parallel."""


@dataclass(frozen=True)
class Snapshot:
    """A pinned source."""

    digest: str
    """Of the manifest's rows without their ``uri``."""
    rows: int
    bytes: int
    """Of all images together."""
    refused: int
    """Rows that could not be pinned: ``rows + refused`` is what the source lists."""
    unlisted: int
    """Images in the folder that no row names, and that are therefore not in the snapshot."""
    splits: dict[str, int]
    """Split -> images."""
    metadata: str
    """Digest of the file that lists the images; without one, of names and stamps of all files."""
    read: int
    """Images that had to be read; the others had not changed."""


def take_snapshot(settings: DataSettings, target: Path, state: Path | None = None) -> Snapshot:
    """Write the snapshot into ``target``, whole or not at all.

    Args:
        state: a folder that outlives runs; what is known of files that have not changed is kept there.

    Raises:
        SnapshotError: the source cannot be reached or is of no known kind, no row of it can be pinned, or it is not the
            snapshot that is meant.
    """
    kept = Kept(state, settings.source)
    try:
        with whole_folder(target) as partial:
            pinned = kept.take("pinned", settings.snapshot, partial)
            taken = _known(partial) if pinned else _look(settings, kept, partial, state)
            if settings.snapshot not in ("", taken.digest):
                raise SnapshotError(
                    f"{settings.source} has changed: {settings.snapshot} was asked for, and {taken.digest} is there; "
                    "submit again"
                )
            return taken
    except PictureError as error:
        raise SnapshotError(str(error)) from error


def _look(settings: DataSettings, kept: Kept, folder: Path, state: Path | None) -> Snapshot:
    """What is at the source now."""
    source = open_source(settings)
    metadata = _metadata(source)
    fingerprint = _fingerprint(settings, source, metadata)
    if kept.take("snapshot", fingerprint, folder):
        return _known(folder)
    taken = _take(settings, source, metadata, folder, _Reader(kept, Store.of(settings, state)))
    kept.keep("snapshot", fingerprint, folder)
    return taken


def pin(settings: DataSettings, digest: str, snapshot: Path, state: Path | None) -> DataSettings:
    """Settings by which just this snapshot is taken again, whatever becomes of its source meanwhile."""
    Kept(state, settings.source).keep("pinned", digest, snapshot)
    return settings.model_copy(update={"snapshot": digest})


def _known(folder: Path) -> Snapshot:
    return Snapshot(**{**json.loads((folder / "snapshot.json").read_bytes()), "read": 0})


def _metadata(source: Source) -> str:
    if source.kind != "imagefolder":
        return digest_json([stamp for _, stamp in sorted(source.folder.files.items())])
    return digest_bytes(read_bytes(source.folder.place(source.metadata[0])))


def _fingerprint(settings: DataSettings, source: Source, metadata: str) -> str:
    """Of all that decides a snapshot; empty where it has to be taken anew. Whether copies are whole is not known."""
    files = "" if settings.copying else source.folder.fingerprint()
    code = code_digest("components.snapshot_data")
    return digest_json([files, metadata, settings.model_dump(mode="json", exclude={"snapshot"}), code]) if files else ""


def _take(settings: DataSettings, source: Source, metadata: str, folder: Path, reader: _Reader) -> Snapshot:
    try:
        batches, refused = reader.batches(source)
    finally:
        reader.kept.keep_files(reader.read)
    listed = pa.Table.from_batches(batches, schema=MANIFEST.append(pa.field("row", pa.int64())))
    manifest, more = settle(listed, settings)
    refused = sorted([*refused, *more], key=lambda one: one.row)
    if not len(manifest):
        first = "; ".join(f"row {one.row}: {one.reason}" for one in refused[:3])
        raise SnapshotError(f"{settings.source} lists no image that can be pinned; {first or 'add one row an image'}")
    names = set(listed["file_name"].to_pylist()) | {one.file_name or "" for one in refused}
    pq.write_table(manifest, folder / "manifest.parquet", row_group_size=ROWS)
    pq.write_table(pa.Table.from_pylist([asdict(one) for one in refused], REFUSED), folder / "refused.parquet")
    taken = Snapshot(
        digest=manifest_digest(manifest_rows(folder / "manifest.parquet")),
        rows=len(manifest),
        bytes=sum(manifest["bytes"].to_pylist()),
        refused=len(refused),
        unlisted=len(source.unlisted(names)),
        splits=dict(Counter(manifest["split"].to_pylist())),
        metadata=metadata,
        read=len(reader.read),
    )
    (folder / "snapshot.json").write_text(json.dumps(asdict(taken), indent=2))
    _describe(settings, taken, folder)
    return taken


def _describe(settings: DataSettings, taken: Snapshot, folder: Path) -> None:
    from lineage.croissant import describe_manifest

    name, manifest = settings.source.rstrip("/").rpartition("/")[2] or "data", folder / "manifest.parquet"
    told = f"A snapshot of {settings.source}: {taken.rows} pictures and captions, {taken.bytes} bytes."
    now = datetime.now(UTC).isoformat(timespec="seconds")
    described = describe_manifest(manifest, manifest.name, taken.digest, name, told, now)
    (folder / "croissant.json").write_text(json.dumps(described, indent=2, ensure_ascii=False), "utf-8")


class _Reader:
    """Reads the images of rows that are not known, a few at once."""

    def __init__(self, kept: Kept, store: Store | None) -> None:
        self.kept, self.store = kept, store
        self.read: dict[str, Measured] = {}

    def batches(self, source: Source) -> tuple[list[pa.RecordBatch], list[Refused]]:
        batches: list[pa.RecordBatch] = []
        refused: list[Refused] = []
        rows: list[dict[str, Any]] = []
        schema = MANIFEST.append(pa.field("row", pa.int64()))
        for done in self._measured(source.rows(lambda uri, stamp: self._known(uri, stamp) is not None)):
            if isinstance(done, Refused):
                refused.append(done)
            else:
                rows.append(done)
            if len(rows) == ROWS:
                batches.append(pa.RecordBatch.from_pylist(rows, schema))
                rows.clear()
        return [*batches, pa.RecordBatch.from_pylist(rows, schema)], refused

    def _measured(self, rows: Iterator[Row | Refused]) -> Iterator[dict[str, Any] | Refused]:
        done = 0
        with ThreadPoolExecutor(READERS) as readers:
            while some := list(islice(rows, READERS * 8)):
                waiting: list[Row] = []
                for row in some:
                    if isinstance(row, Refused):
                        yield row
                    elif measured := self._known(row.uri, row.stamp):
                        yield self._pinned(row, measured)
                    else:
                        waiting.append(row)
                yield from readers.map(self._measure, waiting)
                done += len(some)
                if done % ROWS == 0:
                    report("reading images", done, done, 0.0)

    def _known(self, uri: str, stamp: str) -> Measured | None:
        measured = self.kept.known(uri, stamp)
        return measured if measured and (self.store is None or self.store.has(measured.sha256)) else None

    def _measure(self, row: Row) -> dict[str, Any] | Refused:
        try:
            content = row.content if row.content is not None else read_bytes(row.uri)
        except PictureError as error:
            if row.uri.startswith("file://") or isinstance(error, GoneError):
                return Refused(row.row, row.file_name, str(error), None)
            raise SnapshotError(f"row {row.row} ({row.file_name}): {error}") from error
        measured = Measured(row.stamp, digest_bytes(content), len(content), perceptual_hash(content))
        if self.store:
            self.store.put(measured.sha256, content)
        self.read[row.uri] = measured
        return self._pinned(row, measured)

    def _pinned(self, row: Row, measured: Measured) -> dict[str, Any]:
        return {
            "row": row.row,
            "file_name": row.file_name,
            **row.texts,
            "sha256": measured.sha256,
            "bytes": measured.bytes,
            "uri": self.store.place(measured.sha256) if self.store else row.uri,
            "phash": measured.phash,
        }
