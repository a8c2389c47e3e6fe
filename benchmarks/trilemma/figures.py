"""The figure of merit, fixed before the runs; docs/method.md says the same in more words.

**Panels** of a point (a checkpoint, or an interpolation with base′): alignment, realism and taste on the 100 reported
prompts, none of which any set shows. Each is put on an axis from base′ less its margin (0) to the ceiling (1):
clean drawings of the prompts through the autoencoder, alignment 1. The margins are the gate's: 0.02, 0.01, 0.1.

- `box`: the product of the three coordinates of one point, 0 where one is below 0. It is the hypervolume of that point.
- **`end`**, the main measure: the box of the last checkpoint.
- `mean`: the box averaged over the five checkpoints: what a person gets who does not know when to stop.
- `hypervolume`: of nine points, base′, the five checkpoints and the three interpolations, equally many in every arm.
- `stopped`, `mixed`, `chosen`: the box, on the reported prompts, of the point that has the largest box on the choosing
  prompts; among base′ and the checkpoints, among base′, the interpolations and the last checkpoint, and among all.
- `realism gained`: the most realism over base′ among the nine points whose alignment holds within its margin.
- `promoted`: whether the gate's rule (docs/gate.md) would promote the last checkpoint over base′ on the reported
  prompts, with t bounds over prompts in place of the bootstrap's.

Two arms are compared by differences of seeds, each with its pair: the same set, order, noise and prompts. A contrast's
interval is Student's at 95 %. Holm's correction is over all of `CONTRASTS`, for each measure on its own. **A contrast
is called shown where, on `end` averaged over the four cells seed by seed, Holm's p is below 0.05**; the cells on their
own, and the other measures, are reported beside it, whether they agree or not. λ of everything that is held is matched
by drift, on a seed that is not reported (`arms.matching`); drift is reported for every run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

AXES = ("alignment", "realism", "taste")
MARGINS = {"alignment": 0.02, "realism": 0.01, "taste": 0.1}
ALPHA, PROMPTS = 0.025, 100
MEASURES = ("end", "mean", "hypervolume")
Point = Mapping[str, float]
Cell = tuple[int, float]
"""World and learning rate."""

CONTRASTS: dict[str, tuple[tuple[str, str], ...]] = {
    "does an anchor hold what plain fine-tuning loses": (
        ("noise-stream", "plain"), ("noise-text", "plain"), ("samples-stream", "plain"), ("samples-text", "plain"),
    ),
    "is it more than fewer exposures": (("noise-stream", "fewer-exposures"), ("samples-stream", "fewer-exposures")),
    "is the text space better than the stream": (("noise-text", "noise-stream"), ("samples-text", "samples-stream")),
    "or than any projection": (("noise-text", "noise-random"), ("samples-text", "samples-random")),
    "is it what the text says": (("noise-text", "noise-shuffled"), ("samples-text", "samples-shuffled")),
    "are features better held than velocities": (
        ("noise-stream", "noise-velocity"), ("samples-stream", "samples-velocity"), ("samples-stream", "prior"),
    ),
    "are pictures needed": (("samples-stream", "noise-stream"),),
    "does supervision of the set help": (("shipped", "plain"), ("raw-cosines", "shipped")),
    "does an adapter do": (("noise-stream", "lora"),),
}  # fmt: skip
"""The named contrasts: question to pairs of arms, first less second."""
CHOICES = (
    (("plain", "stopped"), ("plain", "end")),
    (("plain", "mixed"), ("plain", "end")),
    (("noise-stream", "end"), ("plain", "stopped")),
    (("noise-stream", "end"), ("plain", "chosen")),
    (("noise-stream", "chosen"), ("noise-stream", "end")),
    (("noise-stream", "chosen"), ("plain", "chosen")),
    (("samples-stream", "chosen"), ("plain", "chosen")),
    (("noise-text", "chosen"), ("plain", "chosen")),
)
"""The named contrasts that involve choosing on the choosing prompts: (arm, measure) less (arm, measure)."""


def coordinates(point: Point, base: Point, ceiling: Point) -> tuple[float, ...]:
    """A point's place between base′ less the margins (0) and the ceiling (1) on each axis."""
    tops = {"alignment": 1.0, "realism": ceiling["realism"], "taste": ceiling["taste"]}
    lows = {axis: base[axis] - MARGINS[axis] for axis in AXES}
    return tuple((point[axis] - lows[axis]) / (tops[axis] - lows[axis]) for axis in AXES)


def box(place: Sequence[float]) -> float:
    """The volume between the reference and one point."""
    return float(np.prod([max(0.0, x) for x in place]))


def hypervolume(places: Sequence[Sequence[float]]) -> float:
    """The exact volume that points dominate, reference 0 on all three axes."""
    inside = [tuple(p) for p in places if min(p) > 0]
    levels = sorted({p[2] for p in inside}, reverse=True)
    total = 0.0
    for number, level in enumerate(levels):
        below = levels[number + 1] if number + 1 < len(levels) else 0.0
        height = area = 0.0
        for x, y in sorted(((p[0], p[1]) for p in inside if p[2] >= level), reverse=True):
            if y > height:
                area += x * (y - height)
                height = y
        total += area * (level - below)
    return total


def promoted(point: Point, base: Point, errors: Point) -> bool:
    """The gate's rule on one candidate, with t bounds."""
    gains = {axis: point[axis] - base[axis] for axis in AXES}
    wide, wider = (float(stats.t.ppf(1 - a, PROMPTS - 1)) for a in (ALPHA, ALPHA / len(AXES)))
    held = all(gains[a] - wide * errors[a] > -MARGINS[a] for a in AXES)
    better = any(gains[a] - wider * errors[a] > 0 for a in AXES)
    return held and better and not any(gains[a] + wider * errors[a] < 0 for a in AXES)


@dataclass(frozen=True)
class Run:
    """One run's figures and what they were made of."""

    line: dict[str, Any]
    base: dict[str, Any]
    figures: dict[str, float]


def figures_of(line: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """All measures of one result line; ``base`` is base′'s line of the same world and seed."""
    points, first, ceiling = line["points"], base["points"]["base"], base["ceiling"]
    marks = sorted((tag for tag in points if tag.isdigit()), key=int)
    mixes = [tag for tag in points if not tag.isdigit()]
    every = {"base": first, **points}

    def places(kind: str) -> dict[str, tuple[float, ...]]:
        return {t: coordinates(p[kind], first[kind], ceiling[f"ceiling.{kind}"]) for t, p in every.items()}

    report, choose = places("report"), places("choose")
    boxes = {tag: box(place) for tag, place in report.items()}

    def best(tags: Sequence[str]) -> float:
        return boxes[max(tags, key=lambda tag: box(choose[tag]))]

    holds = [p["report"] for p in every.values()
             if p["report"]["alignment"] >= first["report"]["alignment"] - MARGINS["alignment"]]  # fmt: skip
    last = points[marks[-1]]
    return {
        "end": boxes[marks[-1]],
        "mean": float(np.mean([boxes[tag] for tag in marks])),
        "hypervolume": hypervolume(list(report.values())),
        "stopped": best(["base", *marks]),
        "mixed": best(["base", *mixes, marks[-1]]),
        "chosen": best(list(every)),
        "realism gained": max(p["realism"] for p in holds) - first["report"]["realism"],
        "promoted": float(promoted(last["report"], first["report"], last["se"])),
        "drift": line["drift"],
    } | {f"last {axis}": last["report"][axis] for axis in AXES}


Runs = dict[Cell, dict[str, dict[int, Run]]]
"""Cell, arm, seed."""


def collect(lines: Sequence[dict[str, Any]]) -> Runs:
    """Whole runs by cell, arm and seed; the first of each counts."""
    bases = {(x["world"], x["seed"]): x for x in lines if x.get("kind") == "base"}
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if line.get("kind") != "main" or "points" not in line:
            continue
        base = bases.get((line["world"], line["seed"]))
        arm = runs[line["world"], line["rate"]][line["arm"]]
        if base is not None and line["seed"] not in arm:
            arm[line["seed"]] = Run(line, base, figures_of(line, base))
    return {cell: dict(arms) for cell, arms in runs.items()}


@dataclass(frozen=True)
class Contrast:
    """Differences of seeds, first less second."""

    name: str
    mean: float
    half: float
    """Half the 95 % t interval."""
    p: float
    n: int
    holm: float = float("nan")


def contrast(name: str, differences: Sequence[float]) -> Contrast:
    """Student's t over paired differences."""
    d = np.asarray(differences, dtype=np.float64)
    n, mean = len(d), float(d.mean()) if len(d) else float("nan")
    if n < 2 or d.std(ddof=1) == 0:
        return Contrast(name, mean, float("nan"), 0.0 if n >= 2 and mean else 1.0, n)
    error = float(d.std(ddof=1) / n**0.5)
    return Contrast(
        name, mean, float(stats.t.ppf(0.975, n - 1)) * error, 2 * float(stats.t.sf(abs(mean / error), n - 1)), n
    )


def holm(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same with Holm's adjusted p over all of them."""
    order = sorted(range(len(contrasts)), key=lambda i: contrasts[i].p)
    adjusted, running = [0.0] * len(contrasts), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(contrasts) - rank) * contrasts[i].p))
        adjusted[i] = running
    return [Contrast(c.name, c.mean, c.half, c.p, c.n, adjusted[i]) for i, c in enumerate(contrasts)]


def differences(runs: Runs, cells: Sequence[Cell], first: tuple[str, str], second: tuple[str, str]) -> list[float]:
    """(arm, measure) less (arm, measure), averaged over ``cells`` seed by seed; of seeds that both sides have."""
    found: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        one, other = runs.get(cell, {}).get(first[0], {}), runs.get(cell, {}).get(second[0], {})
        for seed in set(one) & set(other):
            found[seed].append(one[seed].figures[first[1]] - other[seed].figures[second[1]])
    return [float(np.mean(values)) for _, values in sorted(found.items()) if len(values) == len(cells)]


def named(runs: Runs, cells: Sequence[Cell], measure: str) -> list[Contrast]:
    """All of `CONTRASTS` on one measure, with Holm's p."""
    pairs = [pair for pairs in CONTRASTS.values() for pair in pairs]
    made = [contrast(f"{a} − {b}", differences(runs, cells, (a, measure), (b, measure))) for a, b in pairs]
    return holm([c for c in made if c.n])


def choices(runs: Runs, cells: Sequence[Cell]) -> list[Contrast]:
    """All of `CHOICES`, with Holm's p."""
    made = [contrast(f"{a[0]}, {a[1]} − {b[0]}, {b[1]}", differences(runs, cells, a, b)) for a, b in CHOICES]
    return holm([c for c in made if c.n])


def interval(values: Sequence[float], of: Callable[[float], str] = lambda x: f"{x:.3f}") -> str:
    """A mean with half its 95 % t interval."""
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return of(float(v.mean())) if len(v) else "–"
    return f"{of(float(v.mean()))} ± {of(float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5))}"
