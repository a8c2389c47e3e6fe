"""Measuring images: each is decoded once, and everything is measured on a small square made of it.

| column | what |
|---|---|
| `decodes`, `problem` | whether every pixel can be read, and why not |
| `format`, `mode`, `width`, `height` | as the image says itself (pixels); null where it says nothing |
| `frames` | 1, or more where it is animated or has pages |
| `orientation` | of its EXIF, 1 to 8; 1 is upright, and where it says nothing |
| `sharpness` | variance of the Laplacian of the square's grey values (0 to 255) |
| `exposure` | mean grey value, 0 (black) to 1 (white) |
| `faces`, `face_score`, `face_share` | see `components.validate_data.faces`; null where they are not looked for |

Faces are looked for at 64 pixels, four pictures to a frame of the detector; where none is seen in a larger picture,
again at 128, in a frame of its own.

The square has 64 pixels where the image has no more, else 256. JPEG is decoded at the smallest scale that fills it:
all its data is read, most of the arithmetic is not done.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from components.validate_data.faces import FaceDetector
from lineage.pictures import FORMATS

MEASURED = pa.schema(
    [
        ("decodes", pa.bool_()),
        ("problem", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("frames", pa.int64()),
        ("orientation", pa.int64()),
        ("sharpness", pa.float32()),
        ("exposure", pa.float32()),
        ("faces", pa.int64()),
        ("face_score", pa.float32()),
        ("face_share", pa.float32()),
    ]
)

SMALL, LARGE = 64, 256
"""Sides of the square, pixels."""
COARSE = 32
"""Side of what the exposure is taken of."""
CACHED = 2**16
"""Pixels whose sharpness is computed together: what comes in between stays in the processor's cache."""
ORIENTATION = 0x0112

Facts = dict[str, Any]
"""One row by `MEASURED`; what is not known is not in it."""
Square = tuple[Facts, Image.Image]


class BadImageError(Exception):
    """The image cannot be used; the message says why."""


def measure_images(contents: Sequence[bytes], max_pixels: int, detector: FaceDetector | None) -> pa.Table:
    """The facts about images, one row each, by `MEASURED`.

    Args:
        max_pixels: images of more pixels are not decoded.
    """
    rows: list[Facts] = []
    squares: dict[int, list[Square]] = {SMALL: [], LARGE: []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is either a failure below or harmless
        for content in contents:
            facts: Facts = {"decodes": False}
            rows.append(facts)
            try:
                square = _decode(content, max_pixels, facts)
            except BadImageError as error:
                facts["problem"] = str(error)
            except UnidentifiedImageError:
                facts["problem"] = f"not an image of a known format ({', '.join(FORMATS)})"
            except Exception as error:  # decoders raise whatever a malformed file leads them to
                facts["problem"] = f"{type(error).__name__}: {error}"
            else:
                squares[square.width].append((facts, square))
    for side, members in squares.items():
        if members:
            _measure_squares(members, side, detector)
    return pa.Table.from_pylist(rows, schema=MEASURED)


def _decode(content: bytes, max_pixels: int, facts: Facts) -> Image.Image:
    """Note what the image says of itself, and give its square, RGB and upright."""
    if not content:
        raise BadImageError("the file is empty")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        facts |= {name: getattr(image, name) for name in ("format", "mode", "width", "height")}
        if width * height > max_pixels:
            raise BadImageError(f"{width} x {height} pixels, more than max_pixels {max_pixels}")
        if image.format == "PNG":
            _check_png(content)
        side = SMALL if max(width, height) <= SMALL else LARGE
        image.draft("RGB", (side, side))
        image.load()
        orientation = _orientation(image)
        square = _square(image, side)
        upright = square if orientation in (None, 1) else ImageOps.exif_transpose(square)
        facts |= {"frames": getattr(image, "n_frames", 1), "orientation": orientation, "decodes": True}
    return upright


def _check_png(content: bytes) -> None:
    """Refuse what Pillow passes over: wrong checksums, and a missing end."""
    at, view = 8, memoryview(content)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise BadImageError(f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
        if kind == b"IEND":
            return
        at = end
    raise BadImageError("the file is cut off: its end is missing")


def _orientation(image: Image.Image) -> int | None:
    if not image.info and image.format != "TIFF":
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as above; the pixels are good all the same
        return None


def _square(image: Image.Image, side: int) -> Image.Image:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    factor = min(rgb.size) // side
    if factor > 1:
        rgb = rgb.reduce(factor)
    return rgb if rgb.size == (side, side) else rgb.resize((side, side), Image.Resampling.BILINEAR)


def _measure_squares(members: list[Square], side: int, detector: FaceDetector | None) -> None:
    """Measure squares of one size together, as one strip: a call for each image would cost more than the work."""
    number = len(members)
    strip = Image.new("RGB", (side, side * number))
    for place, (_, square) in enumerate(members):
        strip.paste(square, (0, place * side))
    grey = strip.convert("L")
    greys = np.asarray(grey).reshape(number, side, side)
    coarse = np.asarray(grey.reduce(side // COARSE)).reshape(number, COARSE, COARSE)
    found: dict[str, list[Any]] = {
        "exposure": (coarse.mean(axis=(1, 2), dtype=np.float32) / 255).tolist(),
        "sharpness": _sharpness(greys).tolist(),
    }
    if detector is not None:
        faces = detector.find(np.asarray(strip.reduce(side // SMALL)).reshape(number, SMALL, SMALL, 3))
        unseen = [place for place, count in enumerate(faces.count) if not count and side == LARGE]
        if unseen:
            faces.put(unseen, detector.find(np.stack([np.asarray(members[place][1].reduce(2)) for place in unseen])))
        found |= {"faces": faces.count.tolist(), "face_score": faces.score.tolist(), "face_share": faces.share.tolist()}
    for name, values in found.items():
        for (facts, _), value in zip(members, values, strict=True):
            facts[name] = value


def _sharpness(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000)."""
    some = max(1, CACHED // (grey.shape[1] * grey.shape[2]))
    variances: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(grey), some):
        value = grey[start : start + some].astype(np.int16)
        middle = value[:, 1:-1, 1:-1]
        laplacian = value[:, :-2, 1:-1] + value[:, 2:, 1:-1]
        laplacian += value[:, 1:-1, :-2]
        laplacian += value[:, 1:-1, 2:]
        laplacian -= 4 * middle
        variances.append(laplacian.astype(np.float32).var(axis=(1, 2)))
    return np.concatenate(variances)
