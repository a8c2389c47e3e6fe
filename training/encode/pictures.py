"""The pictures of a validated manifest, each checked against its digest when it is read."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lineage.digests import digest_bytes
from lineage.pictures import FORMATS, PictureError, read_picture, trained_on
from training.errors import TrainingError

COLUMNS = ["file_name", "sha256", "text", "uri"]
Size = tuple[int, int]
"""Width and height in pixels."""


def training_rows(validated: Path) -> list[dict[str, str]]:
    """`COLUMNS` of a validated artifact's rows of the split ``train``; without a split, of all of them."""
    import pyarrow.parquet as pq

    rows = pq.read_table(validated / "manifest.parquet").to_pylist()
    return [{name: row[name] for name in COLUMNS} for row in rows if trained_on(row)]


def corpus_digest(rows: Iterable[Mapping[str, str]]) -> str:
    """The digest of these pictures and captions, in this order; features of them name it as their ``snapshot``."""
    told = [[row["file_name"], row["sha256"], row["text"]] for row in rows]
    return digest_bytes(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode())  # RFC 8785, and fast


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
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise TrainingError(f"{name} at {uri} cannot be decoded: {error}; leave it out of the data") from error
    return picture


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape is nearest to a picture's; among equal shapes, the one nearest in area."""

    def distance(bucket: Size) -> tuple[float, int]:
        shape = math.log(bucket[0] / bucket[1]) - math.log(size[0] / size[1])
        return round(abs(shape), 9), abs(bucket[0] * bucket[1] - size[0] * size[1])

    return min(buckets, key=distance)
