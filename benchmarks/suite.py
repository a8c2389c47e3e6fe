"""Seconds that the avatars' expectation suite takes on a table of facts of a million rows.

    python -m benchmarks.suite [--rows 1000000]

The facts are made up, with one row in a thousand bad; the time covers Great Expectations and finding the rows to set
aside. The last line is the seconds.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.validate_data.facts import SCHEMA
from components.validate_data.quarantine import find_rows
from components.validate_data.settings import ValidationSettings
from components.validate_data.suite import build_suite, read_suite, run_suite

SUITE = Path("examples/avatars/expectations.json")


def make_facts(rows: int, seed: int) -> pa.Table:
    """A table of facts such as measuring gives."""
    draw = np.random.default_rng(seed)
    digests = [f"sha256:{number:064x}" for number in draw.integers(0, 2**62, rows)]
    split = np.where(np.arange(rows) % 20 == 0, "validation", "train")
    length = draw.normal(90, 8, rows).clip(11, 300).astype(int)
    length[::1000] = 0
    columns = {
        "row": range(rows),
        "file_name": [f"{number:07}.png" for number in range(rows)],
        "sha256": digests,
        "bytes": draw.integers(1000, 9000, rows),
        "text": ["a portrait of a person with glasses"] * rows,
        "split": split,
        "license": ["CC0-1.0"] * rows,
        "consent": ["drawn"] * rows,
        "caption_length": length,
        "caption_tokens": length // 4,
        "caption_control": np.zeros(rows, int),
        "decodes": np.ones(rows, bool),
        "mode": ["RGB"] * rows,
        "width": np.full(rows, 64),
        "height": np.full(rows, 64),
        "frames": np.ones(rows, int),
        "orientation": np.ones(rows, int),
        "phash": [f"{number:016x}" for number in draw.integers(0, 2**62, rows)],
        "faces": (draw.random(rows) < 0.98).astype(int),
        "face_share": draw.normal(0.3, 0.05, rows).clip(0, 1).astype(np.float32),
    }
    given = {name: pa.array(columns.get(name, pa.nulls(rows)), SCHEMA.field(name).type) for name in SCHEMA.names}
    return pa.table(given, schema=SCHEMA)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    settings = ValidationSettings(suite=str(SUITE), tokenizer="any")
    with tempfile.TemporaryDirectory() as folder:
        facts, before = make_facts(rows, 1), Path(folder) / "before.parquet"
        pq.write_table(make_facts(rows, 2), before)
        suite = build_suite(read_suite(SUITE), settings, before)
        started = time.perf_counter()
        outcomes, _ = run_suite(suite, facts)
        findings = find_rows(outcomes, facts)
        seconds = time.perf_counter() - started
    for outcome in outcomes:
        print(f"{outcome.severity:8} {'holds' if outcome.holds else 'fails'}  {outcome.name}: {outcome.observed}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(outcomes)} expectations, {rows} rows, {len(findings)} findings, peak {peak:.2f} GiB, seconds:")
    print(f"{seconds:.1f}")


if __name__ == "__main__":
    main()
