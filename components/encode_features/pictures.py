"""The validated pictures, each checked against its digest when it is read."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from lineage.digests import digest_bytes, digest_json
from training.encoding import Corpus, encode
from training.errors import TrainingError
from training.features_info import FeaturesInfo
from training.settings import TrainingSettings

MANIFEST = "manifest.parquet"
COLUMNS = ["file_name", "sha256", "text", "uri"]
READERS = 8
"""Pictures read at once: object stores answer slowly, and in parallel."""


def encode_pictures(settings: TrainingSettings, validated: Path, features: Path) -> FeaturesInfo:
    """Encode the accepted pictures of a validated artifact into a features folder.

    Raises:
        TrainingError: a picture is missing, is not what was validated, or cannot be encoded.
    """
    rows = pq.read_table(validated / MANIFEST, columns=COLUMNS).to_pylist()
    with ThreadPoolExecutor(READERS) as readers:
        corpus = Corpus(
            manifest=digest_json([[row["file_name"], row["sha256"], row["text"]] for row in rows]),
            captions=[row["text"] for row in rows],
            load=lambda run: list(readers.map(open_picture, rows[run.start : run.stop])),
        )
        return encode(settings, corpus, features)


def open_picture(row: dict[str, str]) -> Image.Image:
    """The picture of a manifest row.

    Raises:
        TrainingError: it is gone, its bytes are not those that were validated, or it is no picture.
    """
    name, uri = row["file_name"], row["uri"]
    try:
        with fsspec.open(uri, "rb") as stream:
            content: bytes = stream.read()
    except OSError as error:
        raise TrainingError(f"{name} cannot be read from {uri}: {error}; take a new snapshot") from error
    found = digest_bytes(content)
    if found != row["sha256"]:
        raise TrainingError(
            f"{name} at {uri} has changed since it was validated: its digest was {row['sha256']} and now is {found}; "
            "restore the file, or take a new snapshot"
        )
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise TrainingError(f"{name} at {uri} cannot be decoded: {error}; leave it out of the data") from error
    return picture
