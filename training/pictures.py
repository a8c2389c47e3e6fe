"""The pictures of a validated manifest, each checked against its digest when it is read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lineage.digests import digest_json
from lineage.pictures import PictureError, read_picture
from training.errors import TrainingError

COLUMNS = ["file_name", "sha256", "text", "uri"]
SPLIT = "split"


def training_rows(validated: Path) -> list[dict[str, str]]:
    """`COLUMNS` of a validated artifact's rows of the split ``train``; without a split, of all of them."""
    import pyarrow.parquet as pq

    manifest = validated / "manifest.parquet"
    splits = [SPLIT] if SPLIT in pq.read_schema(manifest).names else []
    rows = pq.read_table(manifest, columns=[*COLUMNS, *splits]).to_pylist()
    return [row for row in rows if (row.pop(SPLIT, None) or "train") == "train"]


def corpus_digest(rows: Iterable[Mapping[str, str]]) -> str:
    """The digest of these pictures and captions, in this order, that features of them name as their ``manifest``."""
    return digest_json([[row["file_name"], row["sha256"], row["text"]] for row in rows])


def open_picture(row: Mapping[str, Any]) -> Image.Image:
    """The picture of a manifest row (``file_name``, ``uri``, ``sha256``).

    Raises:
        TrainingError: it is gone, its bytes are not those that were validated, or it is no picture.
    """
    name, uri = row["file_name"], row["uri"]
    try:
        content = read_picture(row)
    except PictureError as error:
        raise TrainingError(str(error)) from error
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise TrainingError(f"{name} at {uri} cannot be decoded: {error}; leave it out of the data") from error
    return picture
