"""The validated pictures, each checked against its digest when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.encode.encoding import Corpus, encode
from training.encode.info import FeaturesInfo
from training.encode.pictures import Size, nearest, open_picture, training_rows
from training.settings import TrainingSettings

READERS = 8
"""Pictures read at once: object stores answer slowly, and in parallel."""
LYING = 5
"""EXIF orientation from which width and height are exchanged."""


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
            rows=rows,
            load=lambda numbers: list(readers.map(open_picture, [rows[number] for number in numbers])),
            sizes=_sizes(settings.buckets, rows, validated / "facts.parquet"),
        )
        return encode(settings, corpus, features, cache)


def _sizes(buckets: Sequence[Size], rows: list[dict[str, str]], facts: Path) -> list[Size] | None:
    """The bucket of each picture, by its size upright as validation measured it; None: there are no buckets."""
    if len(buckets) < 2:
        return list(buckets) * len(rows) or None
    import pyarrow.parquet as pq

    table = pq.read_table(facts, columns=["sha256", "width", "height", "orientation"]).to_pylist()
    turned = {f["sha256"]: (f["width"], f["height"])[:: -1 if f["orientation"] >= LYING else 1] for f in table}
    return [nearest(turned[row["sha256"]], buckets) for row in rows]
