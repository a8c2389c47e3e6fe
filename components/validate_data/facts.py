"""Facts about each image, measured in one pass: what the expectation suite is run on.

| column | what |
|---|---|
| `row`, `file_name`, `sha256`, `bytes`, `text`, `split`, `phash` | as in the manifest, `row` counted from 0 |
| `license`, `consent`, `source` | as in the manifest, null where blank |
| `caption_length` | characters of the caption without the white space around it; 0 where it is missing |
| `caption_tokens` | its tokens with those that mark start and end; null where no tokenizer is set |
| `caption_control` | control characters in it, line ends and tabs among them; 0 where it is missing |
| the others | `components.validate_data.images` |

Batches are measured in threads: decoding and the detector leave Python's lock to the others. Memory holds the facts,
and a batch of images a thread.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
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
from lineage.pictures import PictureError, read_picture
from lineage.progress import track

COPIED = ("file_name", "sha256", "bytes", "text", "split", "phash")
RIGHTS = ("license", "consent", "source")
CAPTION = ("caption_length", "caption_tokens", "caption_control")
NUMBERS = ("row", "bytes", *CAPTION)
STATED = pa.schema(
    [(name, pa.int64() if name in NUMBERS else pa.string()) for name in ("row", *COPIED, *RIGHTS, *CAPTION)]
)
SCHEMA = pa.unify_schemas([STATED, MEASURED])
CHANGED = pa.field("changed", pa.string())

BATCH = 64
"""Images measured together: at 512 pixels their squares take 30 MiB."""
READERS = 8
"""Images read at once where they do not lie on this machine."""
NAMED = 5


class Measure:
    """Measures batches of manifest rows, in any thread."""

    def __init__(self, settings: ValidationSettings) -> None:
        self.settings, self.tokenizer = settings, _tokenizer(settings.tokenizer)
        self._own = threading.local()

    def __call__(self, rows: pa.RecordBatch) -> pa.Table:
        """The facts about rows of a manifest by `SCHEMA`, and ``changed``: why a row is not what was pinned."""
        if not hasattr(self._own, "detector"):  # of no use to two threads at once
            self._own.detector = FaceDetector(self.settings.face_threshold) if self.settings.faces else None
        contents, changed = _contents(rows)
        measured = measure_images(contents, self.settings.max_pixels, self._own.detector)
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


def measure_facts(manifest: pa.Table, settings: ValidationSettings) -> pa.Table:
    """Measure all images of a manifest, row for row; by `SCHEMA`.

    Raises:
        DataValidationError: images are gone or are not the ones that the snapshot was taken of.
    """
    numbered = manifest.add_column(0, "row", pa.array(range(len(manifest)), pa.int64()))
    with ThreadPool(settings.processes or os.cpu_count()) as pool:
        tables = pool.imap(Measure(settings), numbered.to_batches(max_chunksize=BATCH))
        facts = pa.concat_tables(track(tables, "measuring images", len(manifest), weight=BATCH)).combine_chunks()
    if changed := facts.filter(pc.is_valid(facts["changed"])).to_pylist():
        named = "; ".join(f"row {row['row']}, {row['changed']}" for row in changed[:NAMED])
        more = f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise DataValidationError(
            f"images changed or gone since the snapshot: {named}{more}; put them back, or run again to take a new "
            "snapshot"
        )
    return facts.drop_columns(["changed"])


def _contents(rows: pa.RecordBatch) -> tuple[list[bytes], list[str | None]]:
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


def _unless_blank(values: pa.Array) -> pa.Array:
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
