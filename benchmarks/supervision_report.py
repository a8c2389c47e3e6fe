"""What the runs of `benchmarks.supervision` say: tables with t-intervals over seeds, a plot, and the steps ratios."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

PLAIN, OURS = "plain", "ours"
BASE, RANDOM = "base", "random"
STARTS = {BASE: "From the base model", RANDOM: "From random weights"}
"""The weights that training starts from."""
MEASURES = ("alignment", "alignment/glasses", "alignment/beard")
EXPLAINED = """Means over seeds ± half a 95 % t-interval; Δ is paired with plain fine-tuning by seed. Steps: to the
alignment at which plain fine-tuning of that seed ends, as a share of its steps, over the seeds that reached it; a run
that never did is censored. `benchmarks/supervision.py` says what each arm changes."""
SHOWN = (PLAIN, OURS, "throughout", "throughout-vision", "throughout-shuffled", "vision", "shuffled-text")
"""The arms whose curves are drawn."""
Runs = dict[str, dict[int, dict[str, Any]]]
"""Arm to seed to the run's JSON, of runs with one start."""


def read_runs(results: Path) -> dict[str, Runs]:
    """All runs in a folder of their files, or in one file that has a run on each line, by their start.

    Raises:
        SystemExit: there are none, or they are not comparable.
    """
    found: dict[str, Runs] = {}
    texts = [path.read_text("utf-8") for path in sorted(results.glob("*.json"))]
    for text in texts if results.is_dir() else results.read_text("utf-8").splitlines():
        run = json.loads(text)
        found.setdefault(run["start"], {}).setdefault(run["arm"], {})[run["seed"]] = run
    for start, runs in found.items():
        every = [run for arm in runs.values() for run in arm.values()]
        if not runs.get(PLAIN):
            raise SystemExit(f"{results} has no run of {PLAIN} from {start}, with which all others are compared")
        for name in ("steps", "prompts"):
            if len({run[name] for run in every}) > 1:
                raise SystemExit(
                    f"the runs from {start} in {results} differ in {name}; arms are compared at equal {name}"
                )
    if not found:
        raise SystemExit(f"there are no runs in {results}")
    return {start: found[start] for start in STARTS if start in found}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of ``values`` and the half width of its 95 % t-interval; NaN where there is one value only."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def steps_to(points: Sequence[Mapping[str, float]], goal: float) -> float | None:
    """The step at which the alignment first reaches ``goal``, linear between measuring points; None: it never does."""
    for before, after in itertools.pairwise(points):
        low, high = before["alignment"], after["alignment"]
        if low < goal <= high:
            share = (goal - low) / (high - low)
            return float(before["step"] + share * (after["step"] - before["step"]))
    return float(points[0]["step"]) if points[0]["alignment"] >= goal else None


def ratios(runs: Runs, arm: str) -> dict[int, float | None]:
    """For each seed that both have: the arm's steps to plain fine-tuning's end alignment, over plain's own steps to
    its end; None where the arm never got there."""
    found: dict[int, float | None] = {}
    for seed in sorted(runs[arm].keys() & runs[PLAIN].keys()):
        plain = runs[PLAIN][seed]
        reached = steps_to(runs[arm][seed]["points"], plain["points"][-1]["alignment"])
        found[seed] = None if reached is None else reached / plain["steps"]
    return found


def write_report(results: Path, docs: Path) -> str:
    """Write `supervision-table.md` and `images/supervision.png` below ``docs``; gives what is printed."""
    found = read_runs(results)
    table = "\n".join(f"## {STARTS[start]}\n\n{_table(runs)}" for start, runs in found.items())
    table = f"# The ablation of feature supervision on avatars\n\n{EXPLAINED}\n\n{table}"
    docs.joinpath("images").mkdir(parents=True, exist_ok=True)
    (docs / "supervision-table.md").write_text(table, "utf-8")
    _plot(found, docs / "images" / "supervision.png")
    return "\n".join([table, *(f"{STARTS[start]}: {_last_line(runs)}" for start, runs in found.items())])


def _table(runs: Runs) -> str:
    example = next(iter(runs[PLAIN].values()))
    lines = [
        f"{example['steps']} steps, batch of {example['settings']['batch_size']}, {example['prompts']} held-out "
        f"prompts a measurement, on {example['device']}.",
        "",
        "| arm | seeds | alignment | Δ alignment | glasses | beard | area under curve Δ | steps | censored |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = [run["points"][0] for run in runs[PLAIN].values()]
    cells = [_shown(interval([point[name] for point in base])) for name in MEASURES]
    lines.append(f"| at the start | {len(base)} | {cells[0]} | – | {cells[1]} | {cells[2]} | – | – | – |")
    for arm in sorted(runs, key=lambda name: (name != PLAIN, name != OURS, name)):
        lines.append(_row(runs, arm))
    return "\n".join(lines) + "\n"


def _row(runs: Runs, arm: str) -> str:
    seeds = sorted(runs[arm])
    paired = [seed for seed in seeds if seed in runs[PLAIN]]
    ends = {name: _shown(interval([runs[arm][s]["points"][-1][name] for s in seeds])) for name in MEASURES}
    gained = area = steps = censored = "–"
    if arm != PLAIN and paired:
        gained = _shown(interval([_end(runs, arm, s) - _end(runs, PLAIN, s) for s in paired]), signed=True)
        area = _shown(interval([_area(runs, arm, s) - _area(runs, PLAIN, s) for s in paired]), signed=True)
        found = list(ratios(runs, arm).values())
        reached = [ratio for ratio in found if ratio is not None]
        steps = _shown(interval(reached)) if reached else "–"
        censored = f"{len(found) - len(reached)} of {len(found)}"
    return (
        f"| {arm} | {len(seeds)} | {ends['alignment']} | {gained} | {ends['alignment/glasses']} | "
        f"{ends['alignment/beard']} | {area} | {steps} | {censored} |"
    )


def _end(runs: Runs, arm: str, seed: int) -> float:
    return float(runs[arm][seed]["points"][-1]["alignment"])


def _area(runs: Runs, arm: str, seed: int) -> float:
    """The mean alignment along training."""
    points = runs[arm][seed]["points"]
    steps = np.array([point["step"] for point in points], dtype=float)
    return float(np.trapezoid([point["alignment"] for point in points], steps) / (steps[-1] - steps[0]))


def _shown(mean_and_half: tuple[float, float], signed: bool = False) -> str:
    mean, half = mean_and_half
    if np.isnan(half):
        return f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return f"{mean:+.3f} ± {half:.3f}" if signed else f"{mean:.3f} ± {half:.3f}"


def _plot(found: Mapping[str, Runs], place: Path) -> None:
    """A row for each start: alignment along training of the main arms, and where every arm ends, less plain's end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(found), 2, figsize=(11, 5 * len(found)), layout="constrained", squeeze=False)
    for (start, runs), (curves, ends) in zip(found.items(), rows, strict=True):
        _plot_curves(runs, curves)
        _plot_ends(runs, ends)
        curves.set_title(STARTS[start])
    figure.savefig(place, dpi=110)
    pyplot.close(figure)


def _plot_curves(runs: Runs, axes: Any) -> None:
    for arm in [name for name in SHOWN if name in runs]:
        each = [[point["alignment"] for point in run["points"]] for run in runs[arm].values()]
        steps = [point["step"] for point in next(iter(runs[arm].values()))["points"]]
        means, halves = np.array([interval(column) for column in zip(*each, strict=True)]).T
        axes.errorbar(steps, means, np.nan_to_num(halves), label=arm, capsize=3)
    axes.set(xlabel="optimizer steps", ylabel="alignment on held-out prompts")
    axes.legend()


def _plot_ends(runs: Runs, axes: Any) -> None:
    arms = sorted((arm for arm in runs if arm != PLAIN), key=lambda arm: (arm == OURS, arm))
    for place_of, arm in enumerate(arms):
        found = ratios(runs, arm)
        mean, half = interval([_end(runs, arm, seed) - _end(runs, PLAIN, seed) for seed in found])
        axes.errorbar(mean, place_of, xerr=np.nan_to_num(half), fmt="o", color="C1" if arm == OURS else "C0", capsize=3)
        arms[place_of] = f"{arm} ({sum(ratio is None for ratio in found.values())} of {len(found)} censored)"
    axes.axvline(0, color="grey", linestyle="--")
    axes.set(xlabel=f"alignment at the end, less that of {PLAIN} (95 %)")
    axes.set_yticks(range(len(arms)), arms, fontsize=8)


def _last_line(runs: Runs) -> str:
    """The figure: steps of ours over plain's, and how sure of it the seeds are."""
    if OURS not in runs:
        return f"steps to plain fine-tuning's end alignment: no run of {OURS}"
    found = ratios(runs, OURS)
    reached = [ratio for ratio in found.values() if ratio is not None]
    # A censored run took longer than all its steps: it counts as more than any that arrived.
    every = sorted(float("inf") if ratio is None else ratio for ratio in found.values())
    median = every[len(every) // 2] if every else float("nan")
    arrived = f"mean of those that arrived {_shown(interval(reached))}" if reached else "none arrived"
    return (
        f"steps to plain fine-tuning's end alignment, ours / plain, {len(found)} paired seeds, "
        f"{len(found) - len(reached)} censored: {arrived}; median {median:.2f}"
    )
