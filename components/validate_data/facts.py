"""Facts about each image, measured in one pass: what the expectation suite is run on.

| column | what |
|---|---|
| `row`, `file_name`, `sha256`, `bytes`, `text`, `split` | as in the manifest, `row` counted from 0 |
| `license`, `consent`, `source` | as in the manifest, null where blank |
| `caption_length` | characters of the caption without the white space around it; 0 where it is missing |
| `caption_tokens` | its tokens with those that mark start and end; null where no tokenizer is set |
| `caption_control` | control characters in it, line ends and tabs among them; 0 where it is missing |
| the others | `components.validate_data.images`; `phash` as in the manifest, where it has one |

Few images are measured in this process. More of them stream through Daft, which reads the manifest, calls
`Measure` in as many processes as there are cores, and unchanged on a Ray cluster where ``DAFT_RUNNER=ray`` is set;
`docs/data.md` says why Daft. Memory holds a few batches, however many images there are.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.validate_data.errors import DataValidationError
from components.validate_data.faces import FaceDetector, weights
from components.validate_data.images import MEASURED, measure_images
from components.validate_data.settings import ValidationSettings
from lineage.pictures import PictureError, read_picture
from lineage.progress import track

COPIED = ("file_name", "sha256", "bytes", "text", "split")
RIGHTS = ("license", "consent", "source")
STATED = pa.schema(
    [
        ("row", pa.int64()),
        ("file_name", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("text", pa.string()),
        ("split", pa.string()),
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
FEW = 4096
"""Up to so many images are measured before other processes would have started."""
READERS = 8
"""Images read at once where they do not lie on this machine."""
NAMED = 5
STOPPING, SETTLING = 30.0, 0.5
"""Seconds that the engine's processes have to stop, and that its thread has after them."""


class Measure:
    """Measures batches of manifest rows; one to a process."""

    def __init__(self, settings: ValidationSettings) -> None:
        self.settings = settings
        self.detector = FaceDetector(settings.face_threshold) if settings.faces else None
        self.tokenizer = _tokenizer(settings.tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The facts about ``rows`` by `SCHEMA`, and ``changed``: why a row is not what was pinned."""
        contents, changed = _contents(rows)
        measured = measure_images(contents, self.settings.max_pixels, self.detector)
        captions = [(row["text"] or "").strip() for row in rows]
        stated = {name: [row.get(name) for row in rows] for name in ("row", *COPIED)}
        stated |= {name: [row[name] if (row[name] or "").strip() else None for row in rows] for name in RIGHTS}
        stated["caption_length"] = [len(caption) for caption in captions]
        stated["caption_control"] = [_control_characters(caption) for caption in captions]
        stated["caption_tokens"] = [None] * len(rows)
        if self.tokenizer is not None:
            stated["caption_tokens"] = [len(one.ids) for one in self.tokenizer.encode_batch_fast(captions)]
        pinned = pa.array([row.get("phash") for row in rows], pa.string())
        at = MEASURED.get_field_index("phash")
        measured = measured.set_column(at, "phash", pc.coalesce(pinned, measured["phash"]))
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
    if settings.faces:
        weights()  # fetched at most once, not by each process
    numbered = manifest.add_column(0, "row", pa.array(range(len(manifest)), pa.int64()))
    tables = _here(numbered, settings) if len(manifest) <= FEW else _engine(numbered, settings)
    changed: list[str] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for table in track(tables, "measuring images", len(manifest), weight=BATCH):
            for row in table.filter(pc.is_valid(table["changed"])).to_pylist():
                changed.append(f"row {row['row']}, {row['changed']}")
            writer.write_table(table.drop(["changed"]))
    if changed:
        more = f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise DataValidationError(
            f"images changed or gone since the snapshot: {'; '.join(changed[:NAMED])}{more}; put them back, or run "
            "again to take a new snapshot"
        )


def _here(manifest: pa.Table, settings: ValidationSettings) -> Iterator[pa.Table]:
    measure = Measure(settings)
    for batch in manifest.to_batches(max_chunksize=BATCH):
        yield measure(batch.to_pylist())


def _engine(manifest: pa.Table, settings: ValidationSettings) -> Iterator[pa.Table]:
    """Through Daft, in the order of the manifest."""
    import daft

    dtype = daft.DataType.from_arrow_type(pa.struct(SCHEMA.append(CHANGED)))
    names = manifest.column_names

    @daft.cls(use_process=True, max_concurrency=settings.processes or os.cpu_count())
    class Measuring:
        def __init__(self) -> None:
            self.measure = Measure(settings)

        @daft.method.batch(return_dtype=dtype, batch_size=BATCH)  # type: ignore[untyped-decorator]
        def facts(self, *columns: daft.Series) -> Any:
            told = pa.table([column.to_arrow() for column in columns], names=names)
            return self.measure(told.to_pylist()).to_struct_array().combine_chunks()

    measuring = Measuring()
    frame = daft.from_arrow(manifest).select(measuring.facts(*(daft.col(name) for name in names)).alias("facts"))
    after, others = 0, set(psutil.Process().children())
    try:
        for batch in frame.to_arrow_iter():
            table = pa.Table.from_struct_array(batch.column("facts")).cast(SCHEMA.append(CHANGED))
            if table["row"][0].as_py() != after:
                raise DataValidationError(f"the engine lost row {after} or its order; run again")
            after += len(table)
            yield table
    finally:
        # A thread of Daft's that still stops its processes aborts an interpreter that ends meanwhile.
        psutil.wait_procs([one for one in psutil.Process().children() if one not in others], timeout=STOPPING)
        time.sleep(SETTLING)


def _contents(rows: list[dict[str, Any]]) -> tuple[list[bytes], list[str | None]]:
    """The bytes of each row's image, and why it has none."""

    def read(row: dict[str, Any]) -> tuple[bytes, str | None]:
        try:
            return read_picture(row), None
        except PictureError as error:
            return b"", str(error)

    if all(row["uri"].startswith("file://") for row in rows):
        found = [read(row) for row in rows]
    else:
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(read, rows))
    return [content for content, _ in found], [why for _, why in found]


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
