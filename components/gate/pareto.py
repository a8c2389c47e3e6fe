"""The three panels as a picture: each pair of axes, incumbent and candidate with the interval between them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from components.gate.settings import AXES
from components.gate.verdict import Figure, Ruling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"promote": "#2a7f4f", "hold": "#b07d12", "reject": "#b3372f", "invalid": "#666666"}


def draw_pareto(ruling: Ruling, target: Path) -> None:
    """Write a PNG of three panels, one a pair of axes.

    A panel shows the incumbent, the candidate with the interval of its difference, and the corner of the margins:
    a candidate left of it or below it has lost more than the gate allows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = {figure.name: figure for figure in ruling.figures if figure.kind == "axis"}
    canvas, panels = pyplot.subplots(1, 3, figsize=(13, 4.4))
    for panel, (x, y) in zip(panels, combinations(AXES, 2), strict=True):
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        if x in figures and y in figures:
            _draw_pair(panel, figures[x], figures[y], COLOURS[ruling.decision])
    canvas.suptitle(f"{ruling.decision}: {ruling.reasons[0]}", fontsize=10)
    canvas.tight_layout()
    canvas.savefig(target, dpi=110)
    pyplot.close(canvas)


def _draw_pair(panel: Axes, x: Figure, y: Figure, colour: str) -> None:
    panel.axvline(x.incumbent - x.margin, color="#bbbbbb", linestyle=":", linewidth=1)
    panel.axhline(y.incumbent - y.margin, color="#bbbbbb", linestyle=":", linewidth=1)
    panel.plot(x.incumbent, y.incumbent, "s", color="#444444", label="incumbent")
    panel.errorbar(
        x.candidate,
        y.candidate,
        xerr=[[x.difference - x.lower], [x.upper - x.difference]],
        yerr=[[y.difference - y.lower], [y.upper - y.difference]],
        fmt="o",
        color=colour,
        capsize=3,
        label="candidate, interval of the difference",
    )
    panel.annotate(
        "",
        (x.candidate, y.candidate),
        (x.incumbent, y.incumbent),
        arrowprops={"arrowstyle": "->", "color": colour},
    )
    panel.margins(0.15)
    panel.legend(fontsize=7, loc="lower right")
