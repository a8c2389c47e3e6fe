"""The report as one HTML page that needs nothing beside it: no scripts, no other files, nothing from a network."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from lineage.audit.report import Part, Picture, Report, Standing, Version
from lineage.audit.text import ORDER, rights, seeds, summary
from lineage.digests import PREFIX

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
THUMBNAIL = 112
"""Longest side of a training image, pixels."""
PICTURE = 384
"""Longest side of the picture that was asked about, pixels."""
MOST_ROWS = 500
"""Training images listed; JSON has them all."""
WIDTH, HEIGHT, ACROSS, DOWN = 164, 74, 200, 112
DONE = {"promote": "Promoted", "rollback": "Rolled back", "withdraw": "Withdrawn", "override": "Override"}
LETTERS = 22
"""That fit on one line of a box."""


@dataclass(frozen=True)
class Box:
    """A node of the lineage graph."""

    name: str
    column: int
    row: float
    title: str
    lines: tuple[str, ...]
    standing: Standing | None
    """The worst that was found about it."""

    @property
    def x(self) -> int:
        """Left edge."""
        return 4 + self.column * ACROSS

    @property
    def y(self) -> int:
        """Upper edge."""
        return 4 + int(self.row * DOWN)


def write_page(report: Report) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FileSystemLoader(Path(__file__).parent)
    )
    boxes = draw_boxes(report)
    return environment.get_template("page.html").render(
        report=report,
        version=report.version,
        summary=summary(report),
        rights=rights,
        seeds=seeds(report.records),
        order=ORDER,
        boxes=boxes,
        arrows=_arrows({box.name: box for box in boxes}),
        size=(max((box.x for box in boxes), default=0) + WIDTH + 4, max((b.y for b in boxes), default=0) + HEIGHT + 4),
        box=(WIDTH, HEIGHT),
        grid=_whole(report.images.get("grid")),
        pareto=_whole(report.images.get("pareto")),
        picture=_thumbnail(report.images.get("picture", b""), PICTURE),
        thumbnails=[
            (name.removeprefix("training/"), uri)
            for name, content in report.images.items()
            if name.startswith("training/") and (uri := _thumbnail(content))
        ],
        most=MOST_ROWS,
    )


def draw_boxes(report: Report) -> list[Box]:
    """The lineage graph: from the images to what came of the version."""
    version = report.version
    if version is None:
        return []
    worst = {finding.part: finding.standing for finding in sorted(report.findings, key=_rank, reverse=True)}

    def box(name: str, column: int, row: float, title: str, *lines: str, part: Part | None = None) -> Box:
        return Box(name, column, row, title, tuple(_short(line) for line in lines), worst.get(part) if part else None)

    data = version.data[0]
    accepted = _images(data.pictures)
    refused = _images(data.refused)
    encoded = report.records.get("encode-features")
    features = encoded.outputs.get("features", "") if encoded else ""
    boxes = [
        box("data", 0, 1, "Trained on", accepted, data.accepted, part="data"),
        box("refused", 0, 2, "Refused", refused, "see the reasons below"),
        box("features", 1, 1, "Features", features or "unknown", part="records"),
        box("candidate", 2, 1, "Candidate", version.candidate, version.registered[:19], part="weights"),
        box("set", 3, 0, "Evaluated on", *_evaluated(version), part="evaluation"),
        box("verdict", 3, 1, f"Verdict: {version.decision}", version.verdict, version.judged[:19], part="verdict"),
        box("incumbent", 3, 2, "Judged against", version.incumbent_name, version.incumbent),
        box("version", 4, 1, f"Version {version.number}", version.model, version.standing, part="version"),
    ]
    if version.base:
        boxes.append(box("base", 1, 2, "Trained from", version.base.name, version.base.digest))
    moves = [move for move in version.moves if not move.ended.startswith("given up")][-3:]
    for row, move in enumerate(moves):
        where = 1 + row - (len(moves) - 1) / 2
        lines = f"version {move.version}, {move.time[:10]}", move.user
        boxes.append(box(f"move {row}", 5, where, DONE[move.action], *lines, part="moves"))
    if not moves:
        boxes.append(box("move 0", 5, 1, "Never champion"))
    came = version.descendants[-3:]
    for row, use in enumerate(came):
        where = 1 + row - (len(came) - 1) / 2
        boxes.append(box(f"came {row}", 6, where, f"Version {use.version}", use.how, use.standing))
    if not came:
        boxes.append(box("came 0", 6, 1, "Came of it", "nothing yet"))
    return boxes


def _rank(finding: object) -> int:
    return ORDER.index(finding.standing)  # type: ignore[attr-defined]


def _arrows(boxes: dict[str, Box]) -> list[str]:
    """SVG paths."""
    pairs = [("data", "features"), ("features", "candidate"), ("candidate", "verdict"), ("verdict", "version")]
    pairs += [("base", "candidate")]
    pairs += [("version", name) for name in boxes if name.startswith("move")]
    pairs += [("version" if "move 0" not in boxes else "move 0", n) for n in boxes if n.startswith("came")]
    paths: list[str] = []
    if not boxes:
        return paths
    for start, end in pairs:
        if start in boxes and end in boxes:
            a, b = boxes[start], boxes[end]
            x1, y1, x2, y2 = a.x + WIDTH, a.y + HEIGHT // 2, b.x - 2, b.y + HEIGHT // 2
            paths.append(f"M{x1},{y1} C{(x1 + x2) // 2},{y1} {(x1 + x2) // 2},{y2} {x2},{y2}")
    for upper, lower, up in (("set", "verdict", False), ("verdict", "incumbent", True), ("data", "refused", False)):
        a, b = boxes[upper], boxes[lower]
        x, y1, y2 = a.x + WIDTH // 2, a.y + HEIGHT + 2, b.y - 2
        paths.append(f"M{x},{y2} L{x},{y1}" if up else f"M{x},{y1} L{x},{y2}")
    return paths


def _evaluated(version: Version) -> tuple[str, ...]:
    if version.predicate is None:
        return ("unknown",)
    pinned = version.predicate["evaluation"]["evaluation_set"]
    return f"{pinned.get('name')} {pinned.get('version')}", f"{len(version.seeds)} prompts"


def _images(pictures: tuple[Picture, ...] | None) -> str:
    if pictures is None:
        return "unknown"
    return "1 image" if len(pictures) == 1 else f"{len(pictures)} images"


def _short(line: str) -> str:
    if line.startswith(PREFIX):
        return f"{line.removeprefix(PREFIX)[:12]}…"
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"


def _whole(content: bytes | None) -> str:
    """A PNG as a data URI; empty where it is none."""
    if content is None or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _thumbnail(content: bytes, side: int = THUMBNAIL) -> str:
    """A small PNG as a data URI; empty where the content is no picture."""
    from PIL import Image

    stream = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.thumbnail((side, side))
            image.convert("RGB").save(stream, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return _whole(stream.getvalue())
