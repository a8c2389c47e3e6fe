"""Features again, with one picture in a hundred new: `python -m benchmarks.features_again [--pictures N]`.

Draws N pictures, each with a caption of its own, encodes 99 in 100 of them with the avatars' encoders
(VAE, two CLIPs, teacher, structure), and then all of them with what was kept. Then nothing is new. Drawing is not
counted. The last line is the ratio of the second time to the first, from which the share of new pictures is taken; the
aim is 0.02 at 100,000 pictures. Smaller encoders than real ones make it harder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from components.encode_features.pictures import encode_pictures
from lineage.digests import digest_bytes
from training.settings import SupervisionSettings, TrainingSettings

MODELS = Path(__file__).resolve().parents[1] / "examples" / "avatars" / "models"


def draw(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows of a validated manifest: smooth noise, every picture and every caption another one."""
    draws, rows = np.random.default_rng(0), []
    for number in range(count):
        stream = io.BytesIO()
        pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(stream, "PNG", compress_level=1)
        path = folder / f"{number // 1000:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        text = f"a portrait, shirt {number % 977}, with glasses {number}"
        row = {"file_name": path.name, "sha256": digest_bytes(stream.getvalue()), "text": text}
        rows.append(row | {"uri": f"file://{path}"})
    return rows


def validated(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The artifact that encoding reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "manifest.parquet")
    return folder


def main(count: int) -> None:
    """Draw, encode three times, print the times."""
    settings = TrainingSettings(
        base_model=MODELS / "base",
        teacher=MODELS / "teacher",
        processes=1,
        batch_size=4,
        supervision=SupervisionSettings(enabled=True, structure_grid=4),
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        rows = draw(place / "pictures", count)
        new = set(range(0, count, 100))
        corpora = {
            "the first time": [row for number, row in enumerate(rows) if number not in new],
            "one in a hundred new": rows,
            "nothing new": rows,
        }
        taken = {}
        encode_pictures(settings, validated(place / "warm", rows[:1]), place / "warm-features")  # imports, kernels
        for number, (what, some) in enumerate(corpora.items()):
            artifact = validated(place / str(number), some)
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                encode_pictures(settings, artifact, place / f"features-{number}", place / "cache")
            taken[what] = time.perf_counter() - began
            print(f"{what:24} {taken[what]:8.2f} s  {len(some)} pictures", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{count} pictures, {torch.get_num_threads()} thread, peak memory {peak:.2f} GiB")
    again, first = taken["one in a hundred new"] / taken["the first time"], len(new) / (count - len(new))
    print(f"again / first: {again:.4f}, of which {first:.4f} are the new pictures")
    print(f"beside the new ones: {again - first:.4f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=100_000)
    main(options.parse_args().pictures)
