"""Loss curves: points as JSON lines while training runs, a picture afterwards."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from lineage.frozen import Frozen


class CurvePoint(Frozen):
    """Means over the steps since the last point."""

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
    loss_replay: float | None = None
    """L_replay; None without replay."""
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
<style>body{{font:14px system-ui,sans-serif;margin:2em;color:#222}}
svg{{display:block;width:720px;height:180px;margin:.3em 0 1.5em;border:1px solid #ddd}}
polyline{{fill:none;stroke:#2358c7;stroke-width:1.5;vector-effect:non-scaling-stroke}}</style>
<h1>{html.escape(title)}</h1>
{panels}
<script type="application/json" id="points">{data}</script>
</html>
"""


def _panel(name: str, series: Sequence[tuple[int, float]]) -> str:
    """One curve as an SVG figure, stretched from its first to its last step; nothing for an empty one."""
    if not series:
        return ""
    (first, _), (last, latest) = series[0], series[-1]
    low, high = min(value for _, value in series), max(value for _, value in series)
    span, dots = (high - low) or 1.0, " ".join(f"{step},{-value:.6g}" for step, value in series)
    told = f"{name.replace('_', ' ')}: {latest:.4g} at step {last}; from {low:.3g} to {high:.3g}"
    return (
        f'<figure><figcaption>{told}</figcaption><svg viewBox="{first} {-high:.6g} {max(last - first, 1)} {span:.6g}" '
        f'preserveAspectRatio="none" role="img" aria-label="{name} by step"><polyline points="{dots}"/></svg></figure>'
    )
