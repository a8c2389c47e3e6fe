"""Loss curves: points as JSON lines while training runs, a picture afterwards."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

WIDTH, HEIGHT, MARGIN = 720, 220, 48


class CurvePoint(BaseModel):
    """Means over the steps since the last point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps done."""
    loss: float
    """What was minimised."""
    loss_flow: float
    """Velocity loss, mean squared error in scaled latents."""
    loss_local: float | None = None
    """L_local; None without supervision."""
    loss_global: float | None = None
    """L_global; None without supervision."""
    loss_structure: float | None = None
    """L_structure; None without it."""
    target_entropy: float | None = None
    """Of the attention that makes the text target, in nats; None without supervision."""
    target_variance: float | None = None
    """Of the target across patches, summed over features; None without supervision."""
    supervision_weight: float
    """λ of the last step."""
    learning_rate: float
    """Of the last step."""
    gradient_norm: float | None
    """L2 norm over all parameters before clipping, of the last step; None where it was not finite, and the step was
    not applied."""
    gradient_cosine: float | None = None
    """Cosine of the gradients of supervision and velocity loss at the tapped stream, in the last step; None where the
    supervision does not reach it."""
    gradient_ratio: float | None = None
    """Length of the former gradient over that of the latter."""
    samples_per_second: float
    """Images trained on in a second, over all processes."""

    def metrics(self) -> dict[str, float]:
        """The point's numbers by name, without its step."""
        return {name: value for name, value in self.model_dump(exclude={"step"}).items() if value is not None}


def read_points(path: Path) -> list[CurvePoint]:
    """The points of a JSON-lines file."""
    return [CurvePoint.model_validate_json(line) for line in path.read_text("utf-8").splitlines() if line]


def draw_curves(points: Sequence[CurvePoint], title: str) -> str:
    """A page of its own with the loss curves as SVG and the points as JSON inside; loads nothing."""
    panels = "\n".join(
        _panel(name, [(p.step, value) for p in points if (value := getattr(p, name)) is not None])
        for name in CurvePoint.model_fields
        if name != "step"
    )
    data = json.dumps([point.model_dump() for point in points]).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:14px system-ui,sans-serif;margin:2em;color:#222}}svg{{display:block;margin:0 0 1.5em}}</style>
<h1>{html.escape(title)}</h1>
{panels}
<script type="application/json" id="points">{data}</script>
</html>
"""


def _panel(name: str, series: Sequence[tuple[int, float]]) -> str:
    """One curve as an SVG figure; nothing for an empty one."""
    if not series:
        return ""
    last = max(series[-1][0], 1)
    values = [value for _, value in series]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    dots = " ".join(
        f"{MARGIN + (WIDTH - 2 * MARGIN) * step / last:.1f},"
        f"{HEIGHT - MARGIN / 2 - (HEIGHT - MARGIN) * (value - low) / span:.1f}"
        for step, value in series
    )
    return (
        f"<figure><figcaption>{html.escape(name.replace('_', ' '))}: {values[-1]:.4g} at step {last}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{html.escape(name)} by step">'
        f'<rect x="{MARGIN}" y="{MARGIN / 2}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - MARGIN}" '
        'fill="none" stroke="#ddd"/>'
        f'<polyline points="{dots}" fill="none" stroke="#2358c7" stroke-width="1.5"/>'
        f'<text x="2" y="{MARGIN / 2 + 5}" font-size="11">{high:.3g}</text>'
        f'<text x="2" y="{HEIGHT - MARGIN / 2}" font-size="11">{low:.3g}</text></svg></figure>'
    )
