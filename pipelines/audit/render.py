"""The report for people: as text, and as one HTML page that needs nothing beside it, both by templates.

Nothing in the evidence can steer a terminal, forge a line, or do anything in the page.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from lineage.digests import PREFIX, TREE, hex_of, short
from lineage.figures import cells
from lineage.pictures import FORMATS
from lineage.records import StepRecord
from pipelines.audit.report import Picture, Report, Standing

THUMBNAIL, PICTURE = 112, 384
"""Longest side of a training image, and of the picture that was asked about, pixels."""
MOST_PIXELS = 50_000_000
"""Of a picture that is decoded."""
FEW, MOST_ROWS = 10, 500
"""Training images that text and page list; JSON has them all."""
DONE = {"promote": "Promoted", "rollback": "Rolled back", "withdraw": "Withdrawn", "override": "Override"}
LETTERS = 22
"""That fit on one line of a box in the graph."""
ORDER: tuple[Standing, ...] = get_args(Standing)


def write_text(report: Report) -> str:
    """The whole report for a terminal."""
    return _render("report.txt", report)


def write_page(report: Report) -> str:
    """The whole report as a page, with its pictures and a graph."""
    images = report.images
    thumbnails = {name.removeprefix("training/"): shown(content) for name, content in images.items() if "/" in name}
    return _render(
        "page.html",
        report,
        grid=_as_uri(images.get("grid", b"")),
        pareto=_as_uri(images.get("pareto", b"")),
        picture=shown(images.get("picture", b""), PICTURE),
        thumbnails={name: uri for name, uri in thumbnails.items() if uri},
    )


def _render(template: str, report: Report, **more: Any) -> str:
    environment = Environment(
        autoescape=template.endswith(".html"),
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,
        loader=FileSystemLoader(Path(__file__).parent),
    )
    environment.filters |= {"cells": cells, "rights": rights, "short": short, "brief": _brief}
    worst = {one.part: one.standing for kind in reversed(ORDER) for one in report.findings if one.standing == kind}
    known = {"report": report, "version": report.version, "summary": summary(report), "seeds": seeds(report.records)}
    limits = {"order": ORDER, "worst": worst, "few": FEW, "most": MOST_ROWS, "done": DONE}
    return environment.get_template(template).render(**known, **limits, **more)


def _printable(value: Any) -> Any:
    """A value as one line that steers no terminal; what a macro wrote stays."""
    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def summary(report: Report) -> str:
    """Whether it holds, in one sentence."""
    if report.holds:
        told = f"Everything that was checked holds ({report.count('holds')} checks)"
    else:
        told = f"NOT everything holds: {report.count('does not hold')} of {len(report.findings)} checks do not hold"
        told += f", {report.count('missing')} find something missing"
    open_ends = report.count("not proven")
    return told + (f"; {open_ends} could not be proven" if open_ends else "")


def rights(pictures: tuple[Picture, ...], name: str) -> str:
    """What pictures say of their ``license``, ``consent`` or ``source``, most frequent first."""
    found = Counter(getattr(picture, name) or "not stated" for picture in pictures).most_common()
    most = ", ".join(f"{value} ({count})" for value, count in found[:FEW])
    return most + (f" and {len(found) - FEW} more" if found[FEW:] else "")


def seeds(records: dict[str, StepRecord]) -> dict[str, Any]:
    """Step -> the seed that it was given."""
    given = {step: record.parameters["seed"] for step, record in records.items() if "seed" in record.parameters}
    # KFP hands whole numbers on as floats.
    return {step: int(seed) if isinstance(seed, float) else seed for step, seed in given.items()}


def shown(content: bytes, side: int = THUMBNAIL) -> str:
    """A small PNG as a data URI; empty where the content is no picture, or one of too many pixels."""
    from PIL import Image

    stream = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                return ""
            image.thumbnail((side, side))
            image.convert("RGB").save(stream, "PNG")
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        return ""
    return _as_uri(stream.getvalue())


def _as_uri(content: bytes) -> str:
    """A PNG as a data URI; empty where it is none."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _brief(line: str) -> str:
    """A line that fits into a box."""
    line = f"{hex_of(line)[:12]}…" if line.startswith((PREFIX, TREE)) else line
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"
