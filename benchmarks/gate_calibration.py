"""How often the gate promotes what it should not: `python -m benchmarks.gate_calibration [--pairs N] [--processes N]`.

Simulated pairs of models go through the gate's own figures and rule, 1,000 resamples from one shared draw. Per kind of
scores and scenario it prints how often the candidate was promoted, with the exact (Clopper–Pearson) one-sided 95 %
upper limit; half a margin's loss and very skewed scores are shown, not bounded. Then power against effect and sample
size, as a plot.
The last line is the largest upper limit of the bounded scenarios: at most 0.05.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, t

from components.gate.figures import per_prompt_figures
from components.gate.resampling import Resampling
from components.gate.settings import AXES, GateSettings
from components.gate.slices import Group
from components.gate.verdict import rule

PROMPTS, MARGIN, BETWEEN_AXES, BATCH = 400, 0.2, 0.5, 100
"""Of the avatars: 400 prompts, a margin of 0.2 standard deviations of the difference."""
SCENARIOS = {
    "all axes equal": (0.0, 0.0, 0.0),
    "one at −margin, others far better": (-MARGIN, 5 * MARGIN, 5 * MARGIN),
    "one at −margin/2, others far better": (-MARGIN / 2, 5 * MARGIN, 5 * MARGIN),
}
SIZES, EFFECTS = (100, 200, 400, 1000), (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
Floats = NDArray[np.float64]


def differences(kind: str, latent: Floats, shifts: Floats) -> Floats:
    """Of candidate and incumbent, in standard deviations, with means of exactly ``shifts`` (A, 1).

    Args:
        latent: (2, A, P), standard normal, correlated between axes; the two models' own parts.
    """
    first, second = latent
    if kind == "correlated":
        return first + shifts
    if kind == "heavy-tailed":
        return t.ppf(norm.cdf(first), 3) / np.sqrt(3) + shifts
    if kind in SPREAD:  # many small gains and a few large losses: the harder side for a lower bound
        variance = SPREAD[kind] ** 2
        spread = np.sqrt((np.exp(variance) - 1) * np.exp(variance))
        return -(np.exp(SPREAD[kind] * first) - np.exp(variance / 2)) / spread + shifts
    scale = 0.5  # binary: right or wrong, each prompt for both models alike hard
    incumbent, candidate = 0.4, 0.4 + scale * np.clip(shifts, -0.75, 1.0)
    other = 0.7 * first + np.sqrt(1 - 0.7**2) * second
    return ((norm.cdf(other) < candidate).astype(float) - (norm.cdf(first) < incumbent)) / scale


KINDS = ("correlated", "binary", "heavy-tailed", "skewed", "very skewed")
SPREAD = {"skewed": 0.5, "very skewed": 1.0}
"""Log-normal differences of skewness −1.75 and −6.2; the latter is beyond what 400 prompts bound, and is shown."""


@dataclass(frozen=True)
class Task:
    kind: str
    shifts: tuple[float, float, float]
    prompts: int
    pairs: int
    seed: int


@cache
def shared(prompts: int) -> Resampling:
    return Resampling(np.zeros(prompts, dtype=np.int64), 1000, seed=0)


def judge(task: Task) -> Counter[str]:
    """The decisions on so many pairs."""
    generator = np.random.default_rng(task.seed)
    settings = GateSettings(margins=dict.fromkeys(AXES, MARGIN), resamples=1000)
    between = np.linalg.cholesky(np.full((3, 3), BETWEEN_AXES) + (1 - BETWEEN_AXES) * np.eye(3))
    everyone = np.ones(task.prompts, dtype=np.bool_)
    groups = [Group(axis, axis, "axis", everyone, MARGIN) for axis in AXES]
    made = [
        differences(
            task.kind,
            between @ generator.normal(size=(2, 3, task.prompts)),
            np.array(task.shifts)[generator.permutation(3), None],
        )
        for _ in range(task.pairs)
    ]
    candidate = np.concatenate(made)
    figures = per_prompt_figures(
        groups * task.pairs, candidate, np.zeros_like(candidate), shared(task.prompts), settings
    )
    return Counter(rule(figures[3 * pair : 3 * pair + 3]).decision for pair in range(task.pairs))


def promoted(run: Callable[[list[Task]], list[Counter[str]]], cells: dict[object, Task]) -> dict[object, int]:
    """Cell -> how many of its pairs were promoted."""
    tasks = [
        (cell, Task(task.kind, task.shifts, task.prompts, min(BATCH, task.pairs - start), seed))
        for cell, task in cells.items()
        for seed, start in enumerate(range(0, task.pairs, BATCH), start=1000 * task.seed)
    ]
    found: Counter[object] = Counter(dict.fromkeys(cells, 0))
    for (cell, _), decisions in zip(tasks, run([task for _, task in tasks]), strict=True):
        found[cell] += decisions["promote"]
    return found


def upper_limit(count: int, pairs: int) -> float:
    """Clopper–Pearson's one-sided 95 % upper limit of a share."""
    return 1.0 if count == pairs else float(beta.ppf(0.95, count + 1, pairs - count))


def draw(power: dict[object, int], losses: dict[object, int], pairs: int, target: Path) -> None:
    """The power of several sample sizes, and how often losses below the margin pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for size in SIZES:
        left.plot(
            EFFECTS, [power[size, effect] / pairs for effect in EFFECTS], "o-", markersize=3, label=f"{size} prompts"
        )
    left.set(xlabel="true gain on one axis, in standard deviations of the paired difference", ylabel="promoted")
    left.legend(fontsize=8)
    shares = [loss / MARGIN for loss in LOSSES]
    for kind in KINDS:
        right.plot(shares, [losses[kind, loss] / pairs for loss in LOSSES], "o-", markersize=3, label=kind)
    right.axhline(0.05, color="#b3372f", linestyle=":", linewidth=1)
    right.set(xlabel="true loss on one axis, in margins; others far better", ylabel=f"promoted ({PROMPTS} prompts)")
    right.legend(fontsize=8)
    canvas.tight_layout()
    canvas.savefig(target, dpi=110)


LOSSES = tuple(MARGIN * share for share in (0.0, 0.25, 0.5, 0.75, 1.0))


def main() -> None:
    """Simulate, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=2000, help="simulated pairs a scenario")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("docs/images/gate-power.png"))
    asked = parser.parse_args()
    with ProcessPoolExecutor(asked.processes) as pool:

        def run(tasks: list[Task]) -> list[Counter[str]]:
            return list(pool.map(judge, tasks))

        cells: dict[object, Task] = {
            (kind, name): Task(kind, shifts, PROMPTS, asked.pairs, number)
            for number, (kind, (name, shifts)) in enumerate(product(KINDS, SCENARIOS.items()))
        }
        counts = promoted(run, cells)
        fewer = max(1, asked.pairs // 4)
        sized: dict[object, Task] = {
            (size, effect): Task("correlated", (effect, 0.0, 0.0), size, fewer, 100 + number)
            for number, (size, effect) in enumerate(product(SIZES, EFFECTS))
        }
        lost: dict[object, Task] = {
            (kind, loss): Task(kind, (-loss, 5 * MARGIN, 5 * MARGIN), PROMPTS, fewer, 200 + number)
            for number, (kind, loss) in enumerate(product(KINDS, LOSSES))
        }
        draw(promoted(run, sized), promoted(run, lost), fewer, asked.plot)
    print(f"{'scores':14}{'scenario':38}{'promoted':>10}{'upper limit':>13}   of {asked.pairs} pairs each")
    worst = 0.0
    for (kind, name), count in ((cell, counts[cell]) for cell in product(KINDS, SCENARIOS)):
        limit = upper_limit(count, asked.pairs)
        bounded = "/2" not in name and kind != "very skewed"
        worst = max(worst, limit) if bounded else worst
        print(f"{kind:14}{name:38}{count / asked.pairs:10.4f}{limit:13.4f}" + ("" if bounded else "   not bounded"))
    print(f"power and losses: {asked.plot}")
    print(f"largest upper limit of false promotion: {worst:.4f}")


if __name__ == "__main__":
    main()
