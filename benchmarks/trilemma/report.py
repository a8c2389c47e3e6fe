"""Tables and picture of a result file: `python -m benchmarks.trilemma table|plot RESULTS OUTPUT`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trilemma.arms import ABLATIONS, MAIN
from benchmarks.trilemma.figures import (
    AXES,
    MEASURES,
    Cell,
    Contrast,
    Run,
    Runs,
    choices,
    collect,
    contrast,
    differences,
    interval,
    named,
)
from benchmarks.trilemma.pool import read_lines
from examples.avatars.portraits import VALUES

SHOWN = (
    ("plain", "plain fine-tuning", "#c0392b"),
    ("shipped", "text supervision of the set, as shipped", "#e59866"),
    ("prior", "prior preservation", "#95a5a6"),
    ("noise-stream", "replay of captions, features held", "#1f618d"),
)
"""Arms of the picture, what they are called there, and their colours."""
LATER = (
    (("noise-random", "end"), ("plain", "end")),
    (("noise-shuffled", "end"), ("plain", "end")),
    (("noise-random", "end"), ("noise-stream", "end")),
    (("noise-shuffled", "end"), ("noise-stream", "end")),
    (("noise-text", "end"), ("samples-text", "end")),
    (("noise-velocity", "end"), ("plain", "end")),
    (("prior", "end"), ("plain", "end")),
    (("lora", "end"), ("plain", "end")),
    (("fewer-exposures", "end"), ("plain", "end")),
    (("raw-cosines", "end"), ("plain", "end")),
    (("raw-cosines", "end"), ("shipped", "end")),
    (("noise-text", "end"), ("plain", "stopped")),
    (("noise-random", "end"), ("plain", "stopped")),
    (("noise-stream", "chosen"), ("noise-stream", "stopped")),
    (("noise-stream", "stopped"), ("noise-stream", "end")),
    (("lora", "chosen"), ("plain", "chosen")),
    (("noise-random", "chosen"), ("plain", "chosen")),
)
"""Contrasts that were added after the results: (arm, measure) less (arm, measure)."""


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
    text += ["## Choosing", "", *_choices(runs, cells), "", "## Added after the results", "", *_later(runs, cells), ""]
    text += ["## Strengths, matched by drift", "", *_strengths(lines)]
    output.write_text("\n".join(text) + "\n", "utf-8")


def _counts(lines: Sequence[dict[str, Any]], runs: Runs) -> str:
    whole = sum(len(seeds) for arms in runs.values() for seeds in arms.values())
    failed = sorted({line["key"] for line in lines if "error" in line} - {x["key"] for x in lines if "points" in x})
    devices = sorted({line["device"] for line in lines if "device" in line})
    absent = [
        f"{arm.name} in world {cell[0]} at {cell[1]:g}"
        for cell in sorted(runs)
        for arm in MAIN
        if arm.name not in runs[cell]
    ]
    absent += ["the ablations"] if not any(arm.name in arms for arms in runs.values() for arm in ABLATIONS) else []
    return (
        f"{whole} runs on {', '.join(devices)}; {len(failed)} failed{': ' + ', '.join(failed[:5]) if failed else ''}; "
        f"not run: {', '.join(absent) or 'none'}. "
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
    rows = [f"Holm's correction is over {len(by['end'])} contrasts: those whose arms have all cells.", ""]
    rows.append("| contrast | " + " | ".join(f"{m} | Holm's p" for m in MEASURES) + " | seeds |")
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


def _later(runs: Runs, cells: Sequence[Cell]) -> list[str]:
    rows = ["Not named before the runs, and p is not corrected: to read, not to conclude from.", ""]
    titles = (
        "contrast of boxes",
        "averaged over the cells that have both",
        "p",
        *(f"world {w}, {r:g}" for w, r in cells),
    )
    rows += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for one, other in LATER:
        name = f"{', '.join(one)} − {', '.join(other)}"
        apart = [contrast(name, differences(runs, [cell], one, other)) for cell in cells]
        both = contrast(name, differences(runs, [c for c, x in zip(cells, apart, strict=True) if x.n], one, other))
        some = " | ".join(_signed(x) if x.n else "–" for x in apart)
        rows.append(f"| {name} | {_signed(both)} | {both.p:.2g} | {some} |")
    return rows


def _signed(c: Contrast) -> str:
    return f"{c.mean:+.3f}, every seed" if math.isnan(c.half) else f"{c.mean:+.3f} ± {c.half:.3f}"


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
    """The three panels along training, a column for each cell: what falls, and what holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = collect(read_lines(results))
    cells = sorted(runs)
    figure, grid = pyplot.subplots(
        len(AXES), len(cells), figsize=(3.1 * len(cells), 7.6), squeeze=False, sharex="col", sharey="row"
    )
    for column, cell in enumerate(cells):
        arms = runs[cell]
        for axes, axis in zip(grid[:, column], AXES, strict=True):
            some = [run for seeds in arms.values() for run in seeds.values()]
            level = float(np.mean([run.base["points"]["base"]["report"][axis] for run in some]))
            axes.axhline(level, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
            for arm, label, colour in SHOWN:
                if arm in arms:
                    _curve(axes, list(arms[arm].values()), axis, label, colour)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#eeeeee")
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
        grid[0][column].set_title(f"world {cell[0]}, learning rate {cell[1]:g}", fontsize=10)
        grid[-1][column].set_xlabel("steps", fontsize=9)
    for row, axis in zip(grid, AXES, strict=True):
        row[0].set_ylabel(f"{axis} on what\nthe set does not show", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    dashed = pyplot.Line2D([], [], color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
    figure.legend([*handles, dashed], [*labels, "base′"], loc="upper center", ncol=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(output, dpi=110)


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
    axes.plot(steps, mean, color=colour, label=label, linewidth=2.0)
    if len(runs) > 1:
        half = stats.t.ppf(0.975, len(runs) - 1) * values.std(0, ddof=1) / len(runs) ** 0.5
        axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def write_lines(results: Path, output: Path) -> None:
    """Write a smaller result file, without loss curves, that the same tables and picture follow from."""
    with output.open("w", encoding="utf-8") as stream:
        for line in read_lines(results):
            kept = {name: value for name, value in line.items() if name not in ("flow", "auxiliary")}
            stream.write(json.dumps(kept, separators=(",", ":"), ensure_ascii=False) + "\n")
