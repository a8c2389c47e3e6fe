"""Tables and picture of a result file: `python -m benchmarks.trilemma table|plot RESULTS OUTPUT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trilemma.arms import ABLATIONS, MAIN
from benchmarks.trilemma.figures import AXES, MEASURES, Cell, Contrast, Run, Runs, choices, collect, interval, named
from benchmarks.trilemma.pool import read_lines
from examples.avatars.portraits import VALUES

SHOWN = (("plain", "#c0392b"), ("shipped", "#e59866"), ("samples-velocity", "#7f8c8d"),
         ("noise-stream", "#1f618d"), ("noise-text", "#28a06a"))  # fmt: skip
"""Arms of the picture and their colours."""


def write_table(results: Path, output: Path) -> None:
    """Write all tables as Markdown."""
    lines = read_lines(results)
    runs = collect(lines)
    cells = sorted(runs)
    text = ["# The trilemma experiment: tables", "", _counts(lines, runs), ""]
    for cell in cells:
        text += [f"## World {cell[0]}, learning rate {cell[1]:g}", "", *_base_row(runs[cell]), ""]
        text += ["### Arms", "", *_arms(runs[cell], [a.name for a in MAIN]), ""]
        if any(a.name in runs[cell] for a in ABLATIONS):
            some = ["plain", "noise-stream", "samples-stream", *(a.name for a in ABLATIONS)]
            text += ["### How many, and what replay misses", "", *_arms(runs[cell], some), ""]
        text += ["### Words", "", *_words(runs[cell]), ""]
    text += ["## Named contrasts, all cells averaged seed by seed", "", *_contrasts(runs, cells), ""]
    for cell in cells:
        text += [f"## Named contrasts, world {cell[0]}, learning rate {cell[1]:g}", "", *_contrasts(runs, [cell]), ""]
    text += ["## Choosing", "", *_choices(runs, cells), "", "## Strengths, matched by drift", "", *_strengths(lines)]
    output.write_text("\n".join(text) + "\n", "utf-8")


def _counts(lines: Sequence[dict[str, Any]], runs: Runs) -> str:
    whole = sum(len(seeds) for arms in runs.values() for seeds in arms.values())
    failed = sorted({line["key"] for line in lines if "error" in line} - {x["key"] for x in lines if "points" in x})
    devices = sorted({line["device"] for line in lines if "device" in line})
    return (
        f"{whole} runs on {', '.join(devices)}; {len(failed)} failed{': ' + ', '.join(failed[:5]) if failed else ''}. "
        "Means over seeds ± half a 95 % t interval. `benchmarks/trilemma/figures.py` defines every measure."
    )


def _base_row(arms: dict[str, dict[int, Run]]) -> list[str]:
    bases = {seed: run.base for seeds in arms.values() for seed, run in seeds.items()}
    parts = [f"{axis} {interval([b['points']['base']['report'][axis] for b in bases.values()])}" for axis in AXES]
    top = next(iter(bases.values()))["ceiling"]["ceiling.report"]
    return [f"base′: {', '.join(parts)}. Ceiling: {', '.join(f'{a} {top[a]:.3f}' for a in AXES)}."]


def _arms(arms: dict[str, dict[int, Run]], names: Sequence[str]) -> list[str]:
    head = ("arm", "seeds", "λ", "end", "mean", "hypervolume", "stopped", "mixed", "chosen", "last alignment",
            "last realism", "last taste", "realism gained", "promoted", "drift")  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in names:
        if name not in arms:
            continue
        some = list(arms[name].values())
        value = {m: [r.figures[m] for r in some] for m in some[0].figures}
        strength = some[0].line["strength"]
        row = [name, str(len(some)), f"{strength:.3g}" if strength else "–"]
        row += [interval(value[m]) for m in (*MEASURES, "stopped", "mixed", "chosen", *(f"last {a}" for a in AXES))]
        row += [
            interval(value["realism gained"]),
            f"{int(sum(value['promoted']))}/{len(some)}",
            interval(value["drift"]),
        ]
        rows.append("| " + " | ".join(row) + " |")
    return rows


def _words(arms: dict[str, dict[int, Run]]) -> list[str]:
    names = list(VALUES)
    rows = ["Alignment of each attribute at the last checkpoint.", "", "| arm | " + " | ".join(names) + " |"]
    rows.append("|" + "---|" * (len(names) + 1))
    for arm, some in arms.items():
        last = [r.line["points"][max((t for t in r.line["points"] if t.isdigit()), key=int)] for r in some.values()]
        means = [float(np.mean([p["attributes"][n] for p in last])) for n in names]
        rows.append(f"| {arm} | " + " | ".join(f"{m:.3f}" for m in means) + " |")
    return rows


def _contrasts(runs: Runs, cells: Sequence[Cell]) -> list[str]:
    by = {measure: {c.name: c for c in named(runs, cells, measure)} for measure in MEASURES}
    rows = ["| contrast | " + " | ".join(f"{m} | Holm's p" for m in MEASURES) + " | seeds |"]
    rows.append("|" + "---|" * (2 * len(MEASURES) + 2))
    for name, first in by["end"].items():
        shown = [f"{_signed(by[m][name])} | {by[m][name].holm:.3g}" for m in MEASURES]
        rows.append(f"| {name} | " + " | ".join(shown) + f" | {first.n} |")
    return rows


def _choices(runs: Runs, cells: Sequence[Cell]) -> list[str]:
    columns = [("all cells", choices(runs, cells))]
    columns += [(f"world {w}, {r:g}", choices(runs, [(w, r)])) for w, r in cells]
    names = list(dict.fromkeys(c.name for _, some in columns for c in some))
    rows = ["| contrast of boxes | " + " | ".join(f"{title} | Holm's p" for title, _ in columns) + " |"]
    rows.append("|" + "---|" * (2 * len(columns) + 1))
    for name in names:
        found = [next((c for c in some if c.name == name), None) for _, some in columns]
        rows.append(f"| {name} | " + " | ".join(f"{_signed(c)} | {c.holm:.3g}" if c else "– | –" for c in found) + " |")
    return rows


def _signed(c: Contrast) -> str:
    return f"{c.mean:+.3f} ± {c.half:.3f}"


def _strengths(lines: Sequence[dict[str, Any]]) -> list[str]:
    tried: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for x in lines:
        if x.get("kind") == "match" and "drift" in x:
            tried.setdefault((x["arm"], x["rate"]), []).append((x["strength"], x["drift"]))
    rows = ["| arm | learning rate | drift at each λ tried, world 1, the spare seed |", "|---|---|---|"]
    for (arm, rate), pairs in sorted(tried.items()):
        rows.append(f"| {arm} | {rate:g} | " + ", ".join(f"{s:g}: {d:.3f}" for s, d in sorted(set(pairs))) + " |")
    return rows


def write_plot(results: Path, output: Path) -> None:
    """The three panels along training, a row for each cell: plain, what is shipped, and what holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = collect(read_lines(results))
    cells = sorted(runs)
    figure, grid = pyplot.subplots(len(cells), 3, figsize=(11, 2.6 * len(cells)), squeeze=False)
    for row, cell in zip(grid, cells, strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            for arm, colour in SHOWN:
                if arm in runs[cell]:
                    _curve(axes, list(runs[cell][arm].values()), axis, arm, colour)
            axes.set_title(f"{axis}, world {cell[0]}, rate {cell[1]:g}", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.set_xlabel("steps", fontsize=8)
    grid[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(output, dpi=130)


def _curve(axes: Any, runs: list[Run], axis: str, label: str, colour: str) -> None:
    """A mean over seeds with its 95 % t interval, base′ at step 0."""
    from scipy import stats

    marks = sorted((t for t in runs[0].line["points"] if t.isdigit()), key=int)
    values = np.array(
        [
            [r.base["points"]["base"]["report"][axis], *(r.line["points"][t]["report"][axis] for t in marks)]
            for r in runs
        ]
    )
    steps, mean = [0, *map(int, marks)], values.mean(0)
    axes.plot(steps, mean, color=colour, label=label, linewidth=1.6)
    if len(runs) > 1:
        half = stats.t.ppf(0.975, len(runs) - 1) * values.std(0, ddof=1) / len(runs) ** 0.5
        axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
