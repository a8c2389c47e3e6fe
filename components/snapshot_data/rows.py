"""What can only be said of all rows together: duplicates of a name, and the split."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.snapshot_data.duplicates import assign_splits, near_duplicates
from components.snapshot_data.metadata import TEXTS
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.source import Refused

COLUMNS = ("file_name", "sha256", "bytes", *TEXTS, "split", "uri", "phash")
MANIFEST = pa.schema([(name, pa.int64() if name == "bytes" else pa.string()) for name in COLUMNS])
"""``sha256`` is written ``sha256:<hex>``; ``uri`` is as `lineage.pictures` reads it; ``phash`` is 64 bits in
hexadecimal, null where the image does not decode."""
REFUSED = pa.schema([("row", pa.int64()), ("file_name", pa.string()), ("reason", pa.string()), ("value", pa.string())])


def settle(listed: pa.Table, settings: DataSettings) -> tuple[pa.Table, list[Refused]]:
    """The manifest, sorted by name, with a split for each row; and the rows that others contradict.

    Args:
        listed: `MANIFEST` with ``row``; ``split`` as the rows state it.
    """
    listed, refused = _one_row_an_image(listed.sort_by([("file_name", "ascending"), ("row", "ascending")]))
    splits, leaks = assign_splits(
        _groups(listed["phash"], settings.near_duplicate_bits),
        listed["sha256"].to_pylist(),
        listed["split"].to_pylist(),
        settings.validation_share,
    )
    listed = listed.set_column(listed.column_names.index("split"), "split", pa.array(splits, pa.string()))
    for leak, image in leaks.items():
        row, other = (listed.slice(at, 1).to_pylist()[0] for at in (leak, image))
        reason = f"near-duplicate of {other['file_name']}, which is in split {other['split']}; put both into one split"
        refused.append(Refused(row["row"], row["file_name"], reason, row["phash"]))
    listed = listed.filter(pa.array([image not in leaks for image in range(len(listed))], pa.bool_()))
    return listed.select(MANIFEST.names), refused


def _one_row_an_image(listed: pa.Table) -> tuple[pa.Table, list[Refused]]:
    """Of rows that say the same of one image one stays; of rows that contradict each other none."""
    counted = listed.group_by("file_name").aggregate([("row", "count")])
    several = counted.filter(pc.greater(counted["row_count"], 1))["file_name"]
    named: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in listed.filter(pc.is_in(listed["file_name"], value_set=several.combine_chunks())).to_pylist():
        named[row["file_name"]].append(row)
    refused = []
    for name, rows in named.items():
        first, numbers = rows[0], " and ".join(str(row["row"]) for row in rows)
        agree = all(row[key] == first[key] for row in rows for key in (*TEXTS, "split", "sha256"))
        for row in rows[1:] if agree else rows:
            told = f"listed again, as in row {first['row']}" if agree else f"rows {numbers} contradict each other"
            refused.append(Refused(row["row"], name, f"{told}; keep one row an image", repr(row["text"])[:200]))
    gone = pa.array([one.row for one in refused], pa.int64())
    return listed.filter(pc.invert(pc.is_in(listed["row"], value_set=gone))), refused


def _groups(hashes: Any, bits: int) -> list[int]:
    """Near-duplicates share a number; an image without a hash is alone."""
    import numpy as np

    stated = hashes.to_pylist()
    there = [at for at, value in enumerate(stated) if value is not None]
    groups = [len(stated) + at for at in range(len(stated))]
    found = near_duplicates(np.array([int(stated[at], 16) for at in there], dtype=np.uint64), bits) if there else ()
    for at, group in zip(there, found, strict=True):
        groups[at] = int(group)
    return groups
