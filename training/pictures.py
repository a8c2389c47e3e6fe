"""A picture of the manifest, checked against its digest when it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from lineage.digests import digest_bytes
from training.errors import TrainingError


def open_picture(row: Mapping[str, Any]) -> Image.Image:
    """The picture of a manifest row (``file_name``, ``uri``, ``sha256``).

    Raises:
        TrainingError: it is gone, its bytes are not those that were validated, or it is no picture.
    """
    import fsspec

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
