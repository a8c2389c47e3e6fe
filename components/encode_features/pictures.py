"""The validated pictures, each checked against its digest when it is read."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from lineage.digests import digest_json
from lineage.pictures import PictureError, read_picture
from training.encoding import Corpus, encode
from training.errors import TrainingError
from training.features_info import FeaturesInfo
from training.settings import TrainingSettings

MANIFEST = "manifest.parquet"
COLUMNS = ["file_name", "sha256", "text", "uri"]
SPLIT = "split"
READERS = 8
"""Pictures read at once: object stores answer slowly, and in parallel."""


def encode_pictures(settings: TrainingSettings, validated: Path, features: Path) -> FeaturesInfo:
    """Encode the accepted pictures of a validated artifact into a features folder.

    Raises:
        TrainingError: a picture is missing, is not what was validated, or cannot be encoded.
    """
    rows = _training_rows(validated / MANIFEST)
    with ThreadPoolExecutor(READERS) as readers:
        corpus = Corpus(
            manifest=digest_json([[row["file_name"], row["sha256"], row["text"]] for row in rows]),
            captions=[row["text"] for row in rows],
            load=lambda run: list(readers.map(open_picture, rows[run.start : run.stop])),
        )
        return encode(settings, corpus, features)


def _training_rows(manifest: Path) -> list[dict[str, str]]:
    """Those of the split ``train``; without a split, all of them."""
    splits = [SPLIT] if SPLIT in pq.read_schema(manifest).names else []
    rows = pq.read_table(manifest, columns=[*COLUMNS, *splits]).to_pylist()
    return [row for row in rows if (row.pop(SPLIT, None) or "train") == "train"]


def open_picture(row: dict[str, str]) -> Image.Image:
    """The picture of a manifest row.

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
