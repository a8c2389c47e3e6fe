"""Images/s and peak memory of measuring facts, from a thousand images of 64 and 512 pixels on.

    OMP_NUM_THREADS=1 python -m benchmarks.data_curve [--images 1000 10000] [--plot docs/images/data-speed.png]

Each point is a process of its own that does what step validate-data does up to facts.parquet, with all that it
starts; memory is what these processes hold together (proportional set size), looked at ten times a second. The last
line is the highest peak in GiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.facts import Rows, draw
from components.validate_data.facts import measure_facts
from components.validate_data.settings import ValidationSettings

Point = tuple[int, int, float, float]
"""Size (pixels), images, images/s, peak (GiB)."""


def facts(rows: Rows, folder: str) -> None:
    """The work of one point."""
    measured = measure_facts(pa.Table.from_pylist(rows), ValidationSettings(suite="none"))
    pq.write_table(measured, Path(folder) / "facts.parquet")


def held(process: psutil.Process) -> int:
    """Bytes that a process and all that it started hold together."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def point(size: int, images: int, kind: str) -> Point:
    """Measure and print one point."""
    with tempfile.TemporaryDirectory() as folder:
        rows = draw(Path(folder), images, size, kind)
        started, peak = time.perf_counter(), 0
        work = multiprocessing.get_context("spawn").Process(target=facts, args=(rows, folder))
        work.start()
        while work.is_alive():
            peak = max(peak, held(psutil.Process(work.pid)))
            work.join(0.1)
        seconds = time.perf_counter() - started
    if work.exitcode:
        raise SystemExit(f"measuring {images} images of {size} px ended with status {work.exitcode}")
    print(f"{kind} {size:4} px, {images:7} images: {images / seconds:7.0f}/s, peak {peak / 2**30:.2f} GiB", flush=True)
    return size, images, images / seconds, peak / 2**30


def plot(points: list[Point], path: Path) -> None:
    """Draw speed and memory over the number of images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for size in sorted({one[0] for one in points}):
        mine = [one for one in points if one[0] == size]
        speed.plot([one[1] for one in mine], [one[2] for one in mine], marker="o", label=f"{size} px")
        memory.plot([one[1] for one in mine], [one[3] for one in mine], marker="o", label=f"{size} px")
    memory.axhline(1.5, color="grey", linestyle="--", label="allowed")
    for axes, label in ((speed, "images/s"), (memory, "peak memory, GiB")):
        axes.set(xscale="log", xlabel="images", ylabel=label, ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+")
    parser.add_argument("--size", type=int, nargs="+")
    parser.add_argument("--format", choices=("JPEG", "PNG"), default="JPEG")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    sizes, numbers = arguments.size or [64, 512], arguments.images or [1_000, 10_000]
    points = [point(size, images, arguments.format) for size in sizes for images in numbers]
    if arguments.plot:
        plot(points, arguments.plot)
    print("highest peak, GiB:")
    print(f"{max(one[3] for one in points):.2f}")


if __name__ == "__main__":
    main()
