"""The validated pictures, each checked against its digest when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ImageOps

from training.encode.encoding import Corpus, encode
from training.encode.info import FeaturesInfo
from training.encode.pictures import Size, corpus_digest, nearest, open_picture, training_rows
from training.settings import TrainingSettings

READERS = 8
"""Pictures read at once: object stores answer slowly, and in parallel."""


def encode_pictures(
    settings: TrainingSettings, validated: Path, features: Path, cache: Path | None = None
) -> FeaturesInfo:
    """Encode the accepted pictures of a validated artifact into a features folder.

    ``cache``: a folder that outlives the step, where rows are found again.

    Raises:
        TrainingError: a picture is missing, is not what was validated, or cannot be encoded.
    """
    rows = training_rows(validated)
    with ThreadPoolExecutor(READERS) as readers:
        corpus = Corpus(
            digest=corpus_digest(rows),
            captions=[row["text"] for row in rows],
            load=lambda numbers: list(readers.map(open_picture, [rows[number] for number in numbers])),
            rows=rows,
            sizes=_sizes(settings.buckets, rows, readers),
        )
        return encode(settings, corpus, features, cache)


def _sizes(buckets: Sequence[Size], rows: list[dict[str, str]], readers: ThreadPoolExecutor) -> list[Size] | None:
    """The bucket of each picture; where there is a choice, each picture is read for it once more."""
    if len(buckets) < 2:
        return list(buckets) * len(rows) or None
    return [nearest(size, buckets) for size in readers.map(_size, rows)]


def _size(row: dict[str, str]) -> Size:
    """Width and height of a picture held upright."""
    return ImageOps.exif_transpose(open_picture(row)).size
