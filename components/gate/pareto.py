"""The axes as a picture: by pairs, with the candidate, the incumbent, every former version and the frontier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from components.gate.figures import Figure
from components.gate.settings import AXES, axis_of
from components.gate.verdict import Ruling
from lineage.figures import METRICS
from lineage.registry import Registry, all_pages
from lineage.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"promote": "#2a7f4f", "hold": "#b07d12", "reject": "#b3372f", "invalid": "#666666"}
Point = tuple[float, float]


Past = Mapping[str, Mapping[str, float]]
"""Version -> measure -> the version's mean when it was judged; shown, never judged by."""


def past_versions(state: State, tracking_uri: str, model: str, evaluation: str) -> Past:
    """Every version of the model that was judged on the evaluation set of this digest, by the metrics of its run."""
    judged = {
        registered.version: registered.mlflow_run
        for registered in state.versions.get(model, {}).values()
        if state.verdicts[registered.verdict].evaluation == evaluation != ""
    }
    if not judged:
        return {}  # MLflow takes seconds to load
    client = Registry(tracking_uri, model).client
    experiment = client.get_experiment_by_name(model)
    runs = all_pages(client.search_runs, [experiment.experiment_id]) if experiment else ()
    means = {run.info.run_id: _candidates(run.data.metrics) for run in runs}
    return {version: means[run] for version, run in judged.items() if means.get(run)}


def _candidates(metrics: Mapping[str, float]) -> dict[str, float]:
    """Measure -> mean of the candidate, of a run's metrics."""
    pattern = re.compile(rf"{re.escape(METRICS)}(.+)/candidate")
    return {found[1]: value for name, value in metrics.items() if (found := pattern.fullmatch(name))}


def draw_pareto(ruling: Ruling, past: Past, target: Path) -> None:
    """Write a PNG of three panels, one a pair of axes, each axis by the first measure that decides it.

    A panel shows the incumbent, the candidate with the interval of its difference, former versions, the line of those
    that none beats on both axes, and the corner of the margins: left of it or below it is more loss than allowed.
    """
    from matplotlib.figure import Figure as Canvas

    figures: dict[str, Figure] = {}
    for figure in ruling.figures:
        if figure.kind == "axis":
            figures.setdefault(axis_of(figure.measure), figure)
    canvas = Canvas(figsize=(13, 4.4))
    for panel, (x, y) in zip(canvas.subplots(1, 3), combinations(AXES, 2), strict=True):
        panel.set_xlabel(figures[x].name if x in figures else x)
        panel.set_ylabel(figures[y].name if y in figures else y)
        if x in figures and y in figures:
            _draw_pair(panel, figures[x], figures[y], past, COLOURS[ruling.decision])
    canvas.suptitle(f"{ruling.decision}: {ruling.reasons[0]}"[:160], fontsize=10)
    canvas.tight_layout()
    canvas.savefig(target, dpi=110)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats on both axes, from left to right."""
    best: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def _reach(figure: Figure) -> list[list[float]]:
    # A lopsided interval may lie to one side of the difference.
    return [[max(0.0, figure.difference - figure.lower)], [max(0.0, figure.upper - figure.difference)]]


def _draw_pair(panel: Axes, x: Figure, y: Figure, past: Past, colour: str) -> None:
    panel.axvline(x.incumbent - x.margin, color="#bbbbbb", linestyle=":", linewidth=1)
    panel.axhline(y.incumbent - y.margin, color="#bbbbbb", linestyle=":", linewidth=1)
    former = {version: (of[x.name], of[y.name]) for version, of in past.items() if {x.name, y.name} <= set(of)}
    for version, point in former.items():
        panel.plot(*point, "o", color="#9db4c8", markersize=4)
        panel.annotate(version, point, fontsize=6, xytext=(3, 3), textcoords="offset points", color="#5d7488")
    best = frontier([*former.values(), (x.incumbent, y.incumbent), (x.candidate, y.candidate)])
    panel.step(
        *zip(*best, strict=True), where="pre", color="#9db4c8", linewidth=1, label="frontier, with past versions"
    )
    panel.plot(x.incumbent, y.incumbent, "s", color="#444444", label="incumbent")
    panel.errorbar(
        x.candidate,
        y.candidate,
        xerr=_reach(x),
        yerr=_reach(y),
        fmt="o",
        color=colour,
        capsize=3,
        label="candidate, interval of the difference",
    )
    arrow = {"arrowstyle": "->", "color": colour}
    panel.annotate("", (x.candidate, y.candidate), (x.incumbent, y.incumbent), arrowprops=arrow)
    panel.margins(0.15)
    panel.legend(fontsize=7, loc="lower right")
