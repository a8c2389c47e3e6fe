"""Facts about each image, measured in one pass: what the expectation suite is run on.

| column | what |
|---|---|
| `row`, `file_name`, `sha256`, `bytes`, `text` | as in the manifest, `row` counted from 0 |
| `caption_length` | characters of the caption without the white space around it; 0 where it is missing |
| `license`, `consent`, `source` | as in the manifest, null where blank |
| `split` | as in the manifest |
| `decodes`, `problem` | whether every pixel can be read, and why not |
| `format`, `mode`, `width`, `height` | as the image says itself (pixels); null where it says nothing |
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from components.validate_data.suite import DataValidationError
from lineage.digests import digest_bytes
from lineage.progress import track

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are decoded. Pillow knows more, among them some that start other programs."""

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("file_name", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("text", pa.string()),
        ("caption_length", pa.int64()),
        ("license", pa.string()),
        ("consent", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("decodes", pa.bool_()),
        ("problem", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
    ]
)


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


def measure(manifest: pa.Table, max_pixels: int) -> pa.Table:
    """Read, check and decode each image once.

    Raises:
        DataValidationError: images are gone or are not the ones that the snapshot was taken of.
    """
    rows: list[dict[str, Any]] = []
    changed: list[str] = []
    listed = manifest.to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is either a failure below or harmless
        for number, row in enumerate(track(listed, "measuring images", len(listed))):
            content = _pinned(row)
            if content is None:
                changed.append(row["file_name"])
            else:
                rows.append({"row": number, **_texts(row), **_image_facts(content, max_pixels)})
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise DataValidationError(
            f"{', '.join(changed[:5])}{more}: changed or gone since the snapshot; "
            "put them back, or run again to take a new snapshot"
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def image_path(uri: str) -> Path:
    """The local file of a manifest ``uri``.

    Raises:
        DataValidationError: it lies elsewhere.
    """
    if not uri.startswith("file://"):
        raise DataValidationError(f"{uri} is not a local file; only file:// is read so far")
    return Path(uri.removeprefix("file://"))


def _pinned(row: dict[str, Any]) -> bytes | None:
    """The image's bytes, or nothing where they are not those of the snapshot."""
    path = image_path(row["uri"])
    try:
        if path.stat().st_size != row["bytes"]:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content if digest_bytes(content) == row["sha256"] else None


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    rights = {key: row[key] if (row[key] or "").strip() else None for key in ("license", "consent", "source")}
    kept = {key: row[key] for key in ("file_name", "sha256", "bytes", "text", "split")}
    return {**kept, **rights, "caption_length": len((row["text"] or "").strip())}


def _image_facts(content: bytes, max_pixels: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"decodes": False}
    if not content:
        return {**facts, "problem": "the file is empty"}
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            facts |= {"format": image.format, "mode": image.mode, "width": width, "height": height}
            if width * height > max_pixels:
                return {**facts, "problem": f"{width} x {height} pixels, more than max_pixels {max_pixels}"}
            image.verify()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
    except UnidentifiedImageError:
        return {**facts, "problem": f"not an image of a known format ({', '.join(FORMATS)})"}
    except Exception as error:  # decoders raise whatever a malformed file leads them to
        return {**facts, "problem": f"{type(error).__name__}: {error}"}
    return {**facts, "decodes": True}
