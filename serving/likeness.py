"""An opt-in log of perceptual hashes, by which a picture whose credentials were stripped is found again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.credentials import Origin

if TYPE_CHECKING:
    from PIL import Image

SIDE, KEPT = 32, 8
NEAR = 10
"""Bits of 64 in which two pictures may differ that are called alike."""


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: signs of the 8 x 8 lowest cosine frequencies against their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010; as in the snapshot's manifest.
    """
    import numpy as np

    grey = np.asarray(image.convert("L").resize((SIDE, SIDE)), np.float32)
    cosines = np.cos(np.pi * np.outer(np.arange(KEPT), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
    lowest = (cosines @ grey @ cosines.T).ravel()
    return int.from_bytes(np.packbits(lowest > np.median(lowest)).tobytes(), "big")


class PictureLog:
    """Lines of JSON: hash, time, request and origin; no prompt, no picture."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, image: Image.Image, request: str, origin: Origin) -> None:
        """Add a picture; one line is one write."""
        told = {"hash": f"{perceptual_hash(image):016x}", "time": datetime.now(UTC).isoformat(), "request": request}
        line = json.dumps(told | {"origin": origin.model_dump(mode="json")}) + "\n"
        with open(self.path, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(line.encode())

    def like(self, image: Image.Image) -> list[tuple[int, dict[str, Any]]]:
        """Pictures that look alike, nearest first, with the number of bits in which they differ."""
        wanted = perceptual_hash(image)
        found = [((int(line["hash"], 16) ^ wanted).bit_count(), line) for line in self._lines()]
        return sorted((one for one in found if one[0] <= NEAR), key=lambda one: one[0])

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as stream:
            for line in stream:
                if line.endswith("\n"):  # a last one that a full disk cut off is none
                    yield json.loads(line)
