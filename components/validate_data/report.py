"""The data report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from jinja2 import Environment
from PIL import Image

from components.validate_data.quarantine import Finding
from components.validate_data.suite import Outcome
from lineage.pictures import FORMATS, read_picture

if TYPE_CHECKING:
    from components.validate_data.validate import Validated

MOST_ROWS = 200
"""Quarantined rows shown; all of them are in ``quarantine.parquet``."""
THUMBNAIL = 96
"""Longest side of a thumbnail, pixels."""
LONGEST_CAPTION = 300
"""Characters of a caption that are shown."""

TEMPLATE = Path(__file__).with_suffix(".html")


def write_report(
    path: Path,
    result: Validated,
    outcomes: Sequence[Outcome],
    findings: Sequence[Finding],
    refused: Sequence[str],
    manifest: pa.Table,
    facts: pa.Table,
    before: Sequence[dict[str, Any]],
) -> None:
    """Write the report: counts, every expectation, and the quarantined rows with reasons and thumbnails.

    Args:
        findings: ordered by row.
        manifest: all rows of the snapshot, as `facts`.
        before: rows that the snapshot refused: ``row``, ``file_name`` and ``reason`` of each.
    """
    by_row = [(row, list(group)) for row, group in groupby(findings, key=lambda finding: finding.row)][:MOST_ROWS]
    rows = pa.array([row for row, _ in by_row], pa.int64())
    listed, decodes = manifest.take(rows).to_pylist(), facts["decodes"].take(rows).to_pylist()
    shown: list[dict[str, Any]] = [
        {
            "row": row,
            "file_name": pinned["file_name"],
            "text": _cut(pinned["text"] or ""),
            "thumbnail": _thumbnail(pinned) if decoded else None,
            "reasons": [finding.reason for finding in group],
        }
        for pinned, decoded, (row, group) in zip(listed, decodes, by_row, strict=True)
    ]
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text("utf-8"))
    page = template.render(result=result, outcomes=outcomes, shown=shown, refused=refused, before=before[:MOST_ROWS])
    path.write_text(page, encoding="utf-8")


def _cut(caption: str) -> str:
    return caption if len(caption) <= LONGEST_CAPTION else caption[:LONGEST_CAPTION] + "…"


def _thumbnail(row: dict[str, Any]) -> str:
    """A small PNG in base64, of an image that decodes."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), Image.open(io.BytesIO(read_picture(row)), formats=FORMATS) as image:
        warnings.simplefilter("ignore")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
