"""Images/s of measuring facts against decoding the same files and nothing else, on the same cores.

    OMP_NUM_THREADS=1 python -m benchmarks.facts [--images 4000] [--size 512] [--format PNG]

Both sides run in as many processes as there are cores, one after the other, and are repeated; the best of each
counts. Facts are all that is measured of a batch of rows, reading and checking the digest included, without the
time in which its processes start. The last line is the ratio.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from components.validate_data.facts import BATCH, Measure
from components.validate_data.settings import ValidationSettings
from lineage.digests import digest_bytes

DIFFERENT = 64
PORTRAITS = Path("examples/avatars/data/new")
Rows = list[dict[str, Any]]


def draw(folder: Path, images: int, size: int, kind: str) -> Rows:
    """Write ``images`` files of a few different portraits, numbered behind their end, and give their manifest rows."""
    sources = sorted(PORTRAITS.glob("*.png"))[:DIFFERENT]
    if not sources:
        raise SystemExit(f"there are no portraits in {PORTRAITS}; run make data")
    contents = []
    noise = np.random.default_rng(0)
    for source in sources:
        portrait = np.asarray(Image.open(source).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        grain = noise.normal(0, 4, portrait.shape)  # photographs have it, and decoding has to work for it
        stream = io.BytesIO()
        Image.fromarray((portrait + grain).clip(0, 255).astype(np.uint8)).save(stream, kind)
        contents.append(stream.getvalue())
    rows: Rows = []
    for number in range(images):
        path = folder / f"{number // 1000:03}" / f"{number:06}.{kind.lower()}"
        content = contents[number % len(contents)] + number.to_bytes(4, "big")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        told = {"file_name": path.name, "sha256": digest_bytes(content), "bytes": len(content), "split": "train"}
        rights = {"license": "CC0-1.0", "consent": "drawn", "source": None}
        rows.append({**told, **rights, "text": f"a portrait, number {number}", "uri": f"file://{path}", "phash": None})
    return rows


def decode(rows: Rows) -> int:
    """What facts are compared with: Pillow opens the file and decodes it to RGB."""
    for row in rows:
        Image.open(row["uri"].removeprefix("file://")).convert("RGB")
    return len(rows)


_measure: list[Measure] = []


def start(settings: ValidationSettings) -> None:
    """In each process: load the detector."""
    _measure[:] = [Measure(settings)]


def measure(rows: pa.Table) -> int:
    """The facts of one batch."""
    return len(_measure[0](rows))


def speed(pool: ProcessPoolExecutor, work: Callable[[Any], int], batches: list[Any], repeats: int) -> float:
    """Images/s of the best repeat; the first, unmeasured one loads everything."""
    images = sum(map(len, batches))
    list(pool.map(work, batches[: 4 * (os.cpu_count() or 1)]))
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        assert sum(pool.map(work, batches)) == images
        best = max(best, images / (time.perf_counter() - started))
    return best


def compare(size: int, kind: str, images: int, faces: bool, repeats: int, processes: int) -> float:
    """Print both speeds of one size and format; gives their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"row": number, **row} for number, row in enumerate(draw(Path(folder), images, size, kind))]
        settings = ValidationSettings(suite="none", faces=faces)
        with ProcessPoolExecutor(processes, initializer=start, initargs=(settings,)) as pool:
            batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
            alone = speed(pool, decode, batches, repeats)
            facts = speed(pool, measure, [pa.Table.from_pylist(batch) for batch in batches], repeats)
    seen = "with faces" if faces else "without faces"
    print(f"{kind:5} {size:4} px, {seen}: facts {facts:7.0f}/s, decoding {alone:7.0f}/s, ratio {facts / alone:.2f}")
    return facts / alone


def cases(arguments: argparse.Namespace) -> Iterator[tuple[int, str, bool]]:
    """Sizes, formats, and whether faces are looked for."""
    for faces in (False, True):
        for size in arguments.size or (64, 512):
            for kind in arguments.format or ("JPEG", "PNG"):
                yield size, kind, faces


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, action="append")
    parser.add_argument("--format", choices=("JPEG", "PNG"), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    ratios = {
        case: compare(case[0], case[1], arguments.images, case[2], arguments.repeats, arguments.processes)
        for case in cases(arguments)
    }
    largest = max(size for size, _, _ in ratios)
    print(f"lowest ratio {min(ratios.values()):.2f}; lowest at {largest} px with faces:")
    print(f"{min(ratio for (size, _, faces), ratio in ratios.items() if faces and size == largest):.2f}")


if __name__ == "__main__":
    main()
