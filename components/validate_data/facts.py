"""Facts about each image, measured in one pass: what the expectation suite is run on.

| column | what |
|---|---|
| `row`, `file_name`, `sha256`, `bytes`, `text`, `split`, `phash` | as in the manifest, `row` counted from 0 |
| `license`, `consent`, `source` | as in the manifest, null where blank |
| `caption_length` | characters of the caption without the white space around it; 0 where it is missing |
| `caption_tokens` | its tokens with those that mark start and end; null where no tokenizer is set |
| `caption_control` | control characters in it, line ends and tabs among them; 0 where it is missing |
| the others | `components.validate_data.images` |

Batches are measured in threads, each with a `Measure` of its own: decoding and the detector leave Python's lock to the
others. Memory holds a batch a thread, however many images there are.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.validate_data.errors import DataValidationError
from components.validate_data.faces import FaceDetector
from components.validate_data.images import MEASURED, measure_images
from components.validate_data.settings import ValidationSettings
from lineage.pictures import ROWS, PictureError, read_picture
from lineage.progress import track

COPIED = ("file_name", "sha256", "bytes", "text", "split", "phash")
RIGHTS = ("license", "consent", "source")
STATED = pa.schema(
    [
        ("row", pa.int64()),
        ("file_name", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("text", pa.string()),
        ("split", pa.string()),
        ("phash", pa.string()),
        *((name, pa.string()) for name in RIGHTS),
        ("caption_length", pa.int64()),
        ("caption_tokens", pa.int64()),
        ("caption_control", pa.int64()),
    ]
)
SCHEMA = pa.unify_schemas([STATED, MEASURED])
CHANGED = pa.field("changed", pa.string())

BATCH = 64
"""Images measured together: at 512 pixels their squares take 30 MiB."""
READERS = 8
"""Images read at once where they do not lie on this machine."""
NAMED = 5


class Measure:
    """Measures batches of manifest rows; one to a thread."""

    def __init__(self, settings: ValidationSettings) -> None:
        self.settings = settings
        self.detector = FaceDetector(settings.face_threshold) if settings.faces else None
        self.tokenizer = _tokenizer(settings.tokenizer)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The facts about rows of a manifest by `SCHEMA`, and ``changed``: why a row is not what was pinned."""
        contents, changed = _contents(rows)
        measured = measure_images(contents, self.settings.max_pixels, self.detector)
        captions = [(caption or "").strip() for caption in rows["text"].to_pylist()]
        stated = {name: rows[name] for name in ("row", *COPIED)}
        stated |= {name: _unless_blank(rows[name].cast(pa.string())) for name in RIGHTS}
        stated["caption_length"] = [len(caption) for caption in captions]
        stated["caption_control"] = [_control_characters(caption) for caption in captions]
        stated["caption_tokens"] = [None] * len(rows)
        if self.tokenizer is not None:
            stated["caption_tokens"] = [len(one.ids) for one in self.tokenizer.encode_batch_fast(captions)]
        columns = pa.table(stated, schema=STATED).columns + measured.columns
        return pa.table([*columns, pa.array(changed, CHANGED.type)], schema=SCHEMA.append(CHANGED))


def read_manifest(snapshot: Path) -> pa.Table:
    """The manifest of a snapshot or of a validated artifact.

    Raises:
        DataValidationError: it is missing or not readable.
    """
    path = snapshot / "manifest.parquet"
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataValidationError(f"{path} cannot be read ({error}); take the snapshot again") from error


def write_facts(manifest: pa.Table, settings: ValidationSettings, path: Path) -> None:
    """Measure all images of a manifest into one parquet file, row for row.

    Raises:
        DataValidationError: images are gone or are not the ones that the snapshot was taken of.
    """
    numbered = manifest.add_column(0, "row", pa.array(range(len(manifest)), pa.int64()))
    changed: list[str] = []
    waiting: list[pa.Table] = []  # a row group of each batch would make a long footer
    with ThreadPool(settings.processes or os.cpu_count()) as pool, pq.ParquetWriter(path, SCHEMA) as writer:
        tables = pool.imap(partial(_measure, settings), numbered.to_batches(max_chunksize=BATCH))
        for table in track(tables, "measuring images", len(manifest), weight=BATCH):
            for row in table.filter(pc.is_valid(table["changed"])).to_pylist():
                changed.append(f"row {row['row']}, {row['changed']}")
            waiting.append(table.drop(["changed"]))
            if sum(map(len, waiting)) >= ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    if changed:
        more = f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise DataValidationError(
            f"images changed or gone since the snapshot: {'; '.join(changed[:NAMED])}{more}; put them back, or run "
            "again to take a new snapshot"
        )


_own = threading.local()


def _measure(settings: ValidationSettings, batch: pa.RecordBatch) -> pa.Table:
    if getattr(_own, "settings", None) != settings:
        _own.settings, _own.measure = settings, Measure(settings)
    found: pa.Table = _own.measure(pa.Table.from_batches([batch]))
    return found


def _contents(rows: pa.Table) -> tuple[list[bytes], list[str | None]]:
    """The bytes of each row's image, and why it has none."""

    def read(row: dict[str, Any]) -> tuple[bytes, str | None]:
        try:
            return read_picture(row), None
        except PictureError as error:
            return b"", str(error)

    told = rows.select(["file_name", "sha256", "uri"]).to_pylist()
    if all(row["uri"].startswith("file://") for row in told):
        found = [read(row) for row in told]
    else:
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(read, told))
    return [content for content, _ in found], [why for _, why in found]


def _unless_blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)


def _control_characters(caption: str) -> int:
    return 0 if caption.isprintable() else sum(unicodedata.category(one) == "Cc" for one in caption)


def _tokenizer(place: str | None) -> Any:
    """The fast tokenizer in a folder, neither padding nor cutting.

    Raises:
        DataValidationError: there is none.
    """
    if place is None:
        return None
    import tokenizers

    path = Path(place) / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataValidationError(f"validation.tokenizer: {path} cannot be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
