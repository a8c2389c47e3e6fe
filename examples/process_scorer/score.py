"""A scorer in a process of its own: `python score.py REQUEST RESPONSE`.

It judges how much there is to see, by how well a picture compresses: bits a pixel in its PNG file. A toy, but
deterministic, and it runs in an environment without any package.
"""

import hashlib
import json
import platform
import struct
import sys
from pathlib import Path

CONTRACT = "triptych.scorer/1"


def bits_per_pixel(picture: Path) -> float:
    """The size of a PNG file over the size of its picture, which its header says."""
    content = picture.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    bits: float = 8 * len(content) / (width * height)
    return bits


def main(request: Path, response: Path) -> None:
    """Answer a request."""
    asked = json.loads(request.read_text())
    if asked["contract"] != CONTRACT:
        sys.exit(f"this scorer speaks {CONTRACT}, not {asked['contract']}")
    scores = [bits_per_pixel(request.parent / picture["image"]) for picture in asked["pictures"]]
    program = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    ran = {"python": platform.python_version(), "program": f"sha256:{program}"}
    response.write_text(json.dumps({"contract": CONTRACT, "scores": {"aesthetics": scores}, "ran": ran}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
