"""An unchanged source again, against the first time: `python -m benchmarks.snapshot_again [--images N] [--side PX]`.

Draws N pictures, takes a snapshot of them, and takes it again; then with one picture in a hundred changed. Drawing is
not counted. The last line is the ratio of the second time to the first; the aim is 0.05 at 100,000 images.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from components.snapshot_data.folder import SETTLED
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import take_snapshot


def draw(folder: Path, numbers: range, side: int, seed: int = 0) -> None:
    """Smooth noise, every picture another one, as JPEG."""
    draws = np.random.default_rng(seed)
    for number in numbers:
        pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        place = folder / f"{number // 1000:04}" / f"{number:07}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(stream.getvalue())


def main(images: int, side: int) -> None:
    """Draw, take three snapshots, print the times."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        draw(source, range(images), side)
        with (source / "metadata.jsonl").open("w") as lines:
            for number in range(images):
                row = {"file_name": f"{number // 1000:04}/{number:07}.jpg", "text": f"a portrait, number {number}"}
                lines.write(json.dumps({**row, "license": "CC0-1.0", "consent": "drawn"}) + "\n")
        settings = DataSettings(source=str(source), validation_share=0.1)

        def take(what: str) -> float:
            time.sleep(2 * SETTLED / 1e9)
            began = time.perf_counter()
            taken = take_snapshot(settings, Path(scratch) / "snapshot", Path(scratch) / "state")
            took = time.perf_counter() - began
            print(f"{what:24} {took:8.2f} s  {taken.rows} rows, {taken.read} read")
            return took

        first = take("the first time")
        again = min(take("unchanged") for _ in range(3))
        draw(source, range(0, images, 100), side, seed=1)
        take("one in a hundred changed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{images} images of {side} px, peak memory {peak:.2f} GiB")
    print(f"unchanged / first: {again / first:.4f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=100_000)
    options.add_argument("--side", type=int, default=64, help="pixels")
    asked = options.parse_args()
    main(asked.images, asked.side)
