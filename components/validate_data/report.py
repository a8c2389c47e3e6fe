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
import pyarrow.parquet as pq
from jinja2 import Environment
from PIL import Image

from components.validate_data.images import FORMATS
from components.validate_data.quarantine import Finding
from components.validate_data.suite import Outcome
from lineage.pictures import read_picture

if TYPE_CHECKING:
    from components.validate_data.validate import Validated

MOST_ROWS = 200
"""Quarantined rows shown; all of them are in ``quarantine.parquet``."""
THUMBNAIL = 96
"""Longest side of a thumbnail, pixels."""
LONGEST_CAPTION = 300
"""Characters of a caption that are shown."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Data report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
h1 { margin-bottom: 0 } .lead { color: #555; margin-top: 0 }
.counts { display: flex; gap: 2.5rem; margin: 1.5rem 0 } .counts b { display: block; font-size: 1.8rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td { overflow-wrap: anywhere } th { white-space: nowrap } ul { margin: 0; padding-left: 1.1rem }
.yes { color: #0a6b2d } .no { color: #b00020; font-weight: 600 } img { display: block; border-radius: 4px }
.refused { border-left: 4px solid #b00020; padding: .5rem 1rem; background: #fdf1f2 }
small { color: #666 }
</style>
</head>
<body>
<h1>Data report</h1>
<p class="lead">{{ "Refused" if refused else "Accepted" }} · {{ result.digest }}</p>
{% if refused %}<div class="refused"><ul>
{% for reason in refused %}<li>{{ reason }}</li>{% endfor %}
</ul></div>{% endif %}
<div class="counts">
<div><b>{{ result.rows }}</b>rows</div>
<div><b>{{ result.accepted }}</b>good</div>
<div><b>{{ result.quarantined }}</b>quarantined</div>
{% if result.refused_before %}<div><b>{{ result.refused_before }}</b>refused by the snapshot</div>
{% endif %}</div>
<h2>Expectations</h2>
<table>
<tr><th>Expectation</th><th>Severity</th><th>Holds</th><th>Observed</th></tr>
{% for outcome in outcomes %}<tr>
<td>{{ outcome.description }}<br><small>{{ outcome.name }}</small></td>
<td>{{ outcome.severity }}</td>
<td class="{{ 'yes' if outcome.holds else 'no' }}">{{ "yes" if outcome.holds else "no" }}</td>
<td>{{ outcome.error or outcome.observed }}</td>
</tr>
{% endfor %}</table>
<h2>Quarantined rows</h2>
{% if not shown %}<p>None.</p>{% else %}
<table>
<tr><th>Row</th><th>Image</th><th>File and caption</th><th>Reasons</th></tr>
{% for one in shown %}<tr>
<td>{{ one.row }}</td>
<td>{% if one.thumbnail %}<img alt="" src="data:image/png;base64,{{ one.thumbnail }}">{% endif %}</td>
<td>{{ one.file_name }}<br><small dir="auto">{{ one.text }}</small></td>
<td><ul>{% for reason in one.reasons %}<li>{{ reason }}</li>{% endfor %}</ul></td>
</tr>
{% endfor %}</table>
{% if result.quarantined > shown | length %}
<p>{{ result.quarantined - shown | length }} more are in quarantine.parquet.</p>
{% endif %}{% endif %}
{% if before %}<h2>Refused by the snapshot</h2>
<table>
<tr><th>Row</th><th>File</th><th>Reason</th></tr>
{% for one in before %}<tr><td>{{ one.row }}</td><td>{{ one.file_name }}</td><td>{{ one.reason }}</td></tr>
{% endfor %}</table>{% endif %}
</body>
</html>
"""


def write_report(
    path: Path,
    result: Validated,
    outcomes: Sequence[Outcome],
    findings: Sequence[Finding],
    refused: Sequence[str],
    manifest: pa.Table,
    facts: Path,
    before: Sequence[dict[str, str]],
) -> None:
    """Write the report: counts, every expectation, and the quarantined rows with reasons and thumbnails.

    Args:
        findings: ordered by row.
        manifest: all rows of the snapshot, as `facts`.
        before: rows that the snapshot refused: ``row``, ``file_name`` and ``reason`` of each.
    """
    by_row = [(row, list(group)) for row, group in groupby(findings, key=lambda finding: finding.row)][:MOST_ROWS]
    rows = pa.array([row for row, _ in by_row], pa.int64())
    listed, decodes = (table.take(rows) for table in (manifest, pq.read_table(facts, columns=["decodes"])))
    shown: list[dict[str, Any]] = [
        {
            "row": row,
            "file_name": pinned["file_name"],
            "text": _cut(pinned["text"] or ""),
            "thumbnail": _thumbnail(pinned) if decodes["decodes"][place].as_py() else None,
            "reasons": [finding.reason for finding in group],
        }
        for place, (pinned, (row, group)) in enumerate(zip(listed.to_pylist(), by_row, strict=True))
    ]
    template = Environment(autoescape=True).from_string(TEMPLATE)
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
