"""An opt-in log of perceptual hashes, by which a picture whose credentials were stripped is found again.

Lines of JSON: hash, time, request and origin; no prompt, no picture.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from lineage.pictures import phash
from serving.credentials import Origin

NEAR = 10
"""Bits of 64 in which two pictures may differ that are called alike."""


def note(log: Path, image: Image.Image, request: str, origin: Origin) -> None:
    """Add a picture; one line is one write."""
    told = {"hash": phash(image), "time": datetime.now(UTC).isoformat(), "request": request}
    line = json.dumps(told | {"origin": origin.model_dump(mode="json")}) + "\n"
    with open(log, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(line.encode())


def alike(log: Path, image: Image.Image) -> list[tuple[int, dict[str, Any]]]:
    """Pictures that look like one, nearest first, with the number of bits in which they differ from it."""
    wanted, found = int(phash(image), 16), []
    with log.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):  # a last one that a full disk cut off is none
                known = json.loads(line)
                found.append(((int(known["hash"], 16) ^ wanted).bit_count(), known))
    return sorted((one for one in found if one[0] <= NEAR), key=lambda one: one[0])
