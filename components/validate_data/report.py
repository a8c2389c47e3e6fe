"""The data report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from jinja2 import Environment
from PIL import Image

from components.validate_data.facts import FORMATS, image_path
from components.validate_data.quarantine import Finding
from components.validate_data.suite import Outcome

if TYPE_CHECKING:
    from components.validate_data.validate import Validated

MOST_ROWS = 200
"""Quarantined rows shown; all of them are in ``quarantine.parquet``."""
THUMBNAIL = 96
"""Longest side of a thumbnail, pixels."""

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
</div>
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
<td>{{ one.file_name }}<br><small>{{ one.text or "" }}</small></td>
<td><ul>{% for reason in one.reasons %}<li>{{ reason }}</li>{% endfor %}</ul></td>
</tr>
{% endfor %}</table>
{% if result.quarantined > shown | length %}
<p>{{ result.quarantined - shown | length }} more are in quarantine.parquet.</p>
{% endif %}{% endif %}
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
    facts: pa.Table,
) -> None:
    """Write the report: counts, every expectation, and the quarantined rows with reasons and thumbnails.

    Args:
        findings: ordered by row.
        manifest: all rows of the snapshot, as `facts`.
    """
    decodes = facts["decodes"].to_pylist()
    by_row = [(row, list(group)) for row, group in groupby(findings, key=lambda finding: finding.row)]
    listed = manifest.select(["file_name", "text", "uri"]).to_pylist()
    shown: list[dict[str, Any]] = [
        {
            "row": row,
            "file_name": listed[row]["file_name"],
            "text": listed[row]["text"],
            "thumbnail": _thumbnail(image_path(listed[row]["uri"])) if decodes[row] else None,
            "reasons": [finding.reason for finding in group],
        }
        for row, group in by_row[:MOST_ROWS]
    ]
    template = Environment(autoescape=True).from_string(TEMPLATE)
    page = template.render(result=result, outcomes=outcomes, shown=shown, refused=refused)
    path.write_text(page, encoding="utf-8")


def _thumbnail(path: Path) -> str:
    """A small PNG in base64."""
    stream = io.BytesIO()
    with Image.open(path, formats=FORMATS) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
