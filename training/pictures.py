"""A picture of the manifest, checked against its digest when it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from lineage.pictures import PictureError, read_picture
from training.errors import TrainingError


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
