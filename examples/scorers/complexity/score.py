"""A scorer in a process of its own: `python score.py REQUEST RESPONSE`.

It judges how much there is to see, by how well a picture compresses: bits a pixel in its PNG file. A toy, but
deterministic, and it runs in an environment without any package.
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from contract import Asked, answer


def bits_per_pixel(asked: Asked) -> Mapping[str, float]:
    """The size of a PNG file over the size of its picture, which its header says."""
    content = asked.file.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    return {"aesthetics": 8 * len(content) / (width * height)}


if __name__ == "__main__":
    answer(Path(sys.argv[1]), Path(sys.argv[2]), bits_per_pixel)
