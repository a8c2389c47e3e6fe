"""How often the gate promotes what it should not: `python -m benchmarks.gate_calibration [--pairs N]`.

Simulated pairs of models go through the gate's own figures and rule, at one decision's level of 0.025. Scores lie
between 0 and 1. Per kind of scores, number of prompts and scenario it prints how often the candidate was promoted, with
the exact (Clopper-Pearson) one-sided 95 % upper limit, or that the gate refuses so few prompts for such a margin;
beside it what percentile bounds, as the gate had them once, would have promoted. Then power against sample size, before
and now, as a plot. The last line is the largest upper limit: at most 0.05.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from components.gate.figures import Figure, Group, per_prompt_figures
from components.gate.resampling import Resampling
from components.gate.settings import AXES, GateSettings
from components.gate.verdict import rule

Floats = NDArray[np.float64]
Make = Callable[[np.random.Generator, int, Floats], Floats]
"""Generator, prompts and (A,) true differences -> (A, P) paired differences."""
SIZES, RATES = (30, 50, 133, 400, 1000), (0.005, 0.01, 0.02, 0.05)
ONCE = GateSettings(margins=dict.fromkeys(AXES, 0.05), alpha=0.025, life=1, resamples=4000)
SHIPPED = GateSettings(margins=dict.fromkeys(AXES, 0.05))
SPREAD, BATCH = 0.1, 250


def correlated(generator: np.random.Generator, prompts: int, count: int) -> Floats:
    """(count, P), standard normal, correlated by 0.5."""
    common = generator.normal(size=(1, prompts))
    made: Floats = np.sqrt(0.5) * (common + generator.normal(size=(count, prompts)))
    return made


def rare(rate: float, clustered: bool = False) -> Make:
    """Almost every prompt is drawn alike by both; a failure costs all. At a loss only failures, otherwise gains too."""

    def make(generator: np.random.Generator, prompts: int, shifts: Floats) -> Floats:
        # In strata of 8 prompts, one of ten has all the failures.
        strata = np.arange(prompts) // 8 % 10 == 0 if clustered else np.ones(prompts, dtype=bool)
        share = rate * strata / strata.mean()
        draw = generator.random((len(shifts), prompts))
        lost = draw < np.where(shifts[:, None] < 0, share, share / 2)
        gained = (draw > 1 - share / 2) & (shifts[:, None] == 0)
        made: Floats = np.where(shifts[:, None] > 0, 0.5 + 0.0 * draw, gained * 1.0 - lost)
        return made

    return make


def normal(generator: np.random.Generator, prompts: int, shifts: Floats) -> Floats:
    made: Floats = SPREAD * correlated(generator, prompts, len(shifts)) + shifts[:, None]
    return made


def skewed(sigma: float) -> Make:
    """Many small gains and a few large losses; log-normal, cut at what a score from 0 to 1 can lose."""
    samples = np.exp(sigma * np.random.default_rng(0).normal(size=2_000_000))
    scale = SPREAD / samples.std()
    centre = float(np.minimum(samples * scale, 0.9).mean())

    def make(generator: np.random.Generator, prompts: int, shifts: Floats) -> Floats:
        drawn = np.exp(sigma * correlated(generator, prompts, len(shifts)))
        made: Floats = centre - np.minimum(drawn * scale, 0.9) + shifts[:, None]
        return made

    return make


def binary(generator: np.random.Generator, prompts: int, shifts: Floats) -> Floats:
    """Right or wrong, for both models alike hard: about a third of the prompts differ."""
    hard, own = correlated(generator, prompts, len(shifts)), generator.normal(size=(len(shifts), prompts))
    right = [norm.cdf(latent) for latent in (hard, 0.8 * hard + 0.6 * own)]
    made: Floats = (right[1] < 0.4 + shifts[:, None]) * 1.0 - (right[0] < 0.4)
    return made


KINDS: dict[str, tuple[Make, float]] = {
    **{f"rare failures, {rate:.1%}": (rare(rate), rate) for rate in RATES},
    **{f"in strata of 8, {rate:.1%}": (rare(rate, clustered=True), rate) for rate in RATES},
    "normal": (normal, 0.05),
    "binary": (binary, 0.05),
    "skewed (-1.8)": (skewed(0.5), 0.05),
    "very skewed (-6.2)": (skewed(1.0), 0.05),
}
"""Kind -> how it is made, and its margin: the true loss where there is one."""
GAIN = 0.4


@cache
def shared(prompts: int, resamples: int) -> Resampling:
    return Resampling(prompts, resamples, seed=0)


@cache
def drawn_again(prompts: int) -> NDArray[np.float32]:
    """(B, P): how often each of B bootstrap samples holds each prompt."""
    shares = np.full(prompts, 1 / prompts)
    return np.random.default_rng(0).multinomial(prompts, shares, ONCE.resamples).astype(np.float32)


def figures_of(differences: Floats, margin: float, settings: GateSettings) -> Iterator[Sequence[Figure]]:
    """(N, A, P) -> for each of N pairs of models, the figures of the A axes."""
    count, axes, prompts = differences.shape
    everyone = np.ones(prompts, dtype=np.bool_)
    rows = differences.reshape(-1, prompts)
    groups = [Group(axis, axis, "axis", everyone, margin) for axis in AXES[:axes]] * count
    incumbent = np.where(rows < 0, np.minimum(1, np.maximum(0.5, -rows)), 0.0)
    resampling = shared(prompts, settings.resamples)
    made = per_prompt_figures(groups, incumbent + rows, incumbent, resampling, settings)
    return (made[start : start + axes] for start in range(0, len(made), axes))


def promoted_before(differences: Floats, margin: float) -> int:
    """How many of N pairs percentile bounds promote, by the former rule."""
    count, axes, prompts = differences.shape
    means = drawn_again(prompts) @ differences.reshape(-1, prompts).T.astype(np.float32) / prompts
    holding, deciding = (int(level * (ONCE.resamples + 1)) - 1 for level in (0.025, 0.025 / axes))
    ordered = np.partition(means, [deciding, holding, -1 - deciding], axis=0).reshape(-1, count, axes)
    holds, gains, losses = ordered[holding] > -margin, ordered[deciding] > 0, ordered[-1 - deciding] < 0
    return int((holds.all(axis=1) & gains.any(axis=1) & ~losses.any(axis=1)).sum())


@dataclass(frozen=True)
class Counts:
    before: int
    now: int
    shipped: int


def promoted(make: Make, margin: float, prompts: int, shifts: Sequence[float], pairs: int, seed: int) -> Counts:
    """How many of so many pairs are promoted."""
    generator, before, now, shipped = np.random.default_rng(seed), 0, 0, 0
    for start in range(0, pairs, BATCH):
        drawn = [make(generator, prompts, np.array(shifts)) for _ in range(min(BATCH, pairs - start))]
        differences = np.stack(drawn)
        before += promoted_before(differences, margin)
        now += sum(rule(f).decision == "promote" for f in figures_of(differences, margin, ONCE))
        if seed >= 1000:
            shipped += sum(rule(f).decision == "promote" for f in figures_of(differences, margin, SHIPPED))
    return Counts(before, now, shipped)


def in_cell(kind: str, prompts: int, shifts: Sequence[float], pairs: int, seed: int) -> Counts:
    """`promoted` for scores of a kind, which another process can be told by name."""
    return promoted(*KINDS[kind], prompts, shifts, pairs, seed)


def upper_limit(count: int, pairs: int) -> float:
    """Clopper-Pearson's one-sided 95 % upper limit of a share."""
    return 1.0 if count == pairs else float(beta.ppf(0.95, count + 1, pairs - count))


def draw(power: dict[tuple[float, int], Counts], pairs: int, target: Path) -> None:
    """Power against sample size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gains = sorted({gain for gain, _ in power})
    canvas, panels = pyplot.subplots(1, len(gains), figsize=(11, 4), sharey=True)
    for panel, gain in zip(panels, gains, strict=True):
        sizes = sorted(size for other, size in power if other == gain)
        for label, style, of in (
            ("before: percentile bounds, every decision at 0.025", "o:", "before"),
            ("now, one decision at 0.025", "s--", "now"),
            ("now, as shipped: 20 decisions at 0.05 in all", "D-", "shipped"),
        ):
            shares = [getattr(power[gain, size], of) / pairs for size in sizes]
            panel.plot(sizes, shares, style, markersize=4, label=label)
        panel.set(xlabel="prompts", title=f"true gain of {gain / SPREAD:g} σ on one axis", xscale="log")
    panels[0].set_ylabel("promoted")
    panels[0].legend(fontsize=7)
    canvas.tight_layout()
    canvas.savefig(target, dpi=110)


def main() -> None:
    """Simulate, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=1000, help="simulated pairs a cell")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/gate-power.png"))
    parser.add_argument("--processes", type=int, default=1, help="the same figures, sooner")
    asked = parser.parse_args()
    with ProcessPoolExecutor(asked.processes) as pool:
        simulate(asked.pairs, asked.plot, pool)


def simulate(pairs: int, plot: Path, pool: Executor) -> None:
    """Every cell, in processes of its own."""
    worst = 0.0
    print(f"{'scores':24}{'prompts':>8}  {'scenario':28}{'before':>8}{'now':>8}{'upper limit':>13}   of {pairs}")
    cells: list[tuple[str, int, str, Future[Counts] | None]] = []
    for number, ((kind, (_, margin)), prompts) in enumerate(product(KINDS.items(), SIZES)):
        for scenario, shifts in ("one at -margin, others better", (-margin, GAIN, GAIN)), ("all equal", (0.0,) * 3):
            few = prompts < ONCE.prompts_for(margin, "alignment")
            given = None if few else pool.submit(in_cell, kind, prompts, shifts, pairs, number)
            cells.append((kind, prompts, scenario, given))
    fewer, waiting = max(1, pairs // 4), {}
    for number, (gain, prompts) in enumerate(product((0.02, 0.05), SIZES[1:])):
        waiting[gain, prompts] = pool.submit(promoted, normal, 0.05, prompts, (gain, 0.0, 0.0), fewer, 1000 + number)
    for kind, prompts, scenario, given in cells:
        if given is None:
            needed = ONCE.prompts_for(KINDS[kind][1], "alignment")
            print(f"{kind:24}{prompts:8}  {scenario:28}   refused: needs {needed}")
            continue
        found = given.result()
        limit = upper_limit(found.now, pairs)
        worst = max(worst, limit)
        print(
            f"{kind:24}{prompts:8}  {scenario:28}{found.before / pairs:8.4f}{found.now / pairs:8.4f}{limit:13.4f}",
            flush=True,
        )
    power = {cell: given.result() for cell, given in waiting.items()}
    for (gain, prompts), counts in power.items():
        print(f"power, gain {gain / SPREAD:g} σ, {prompts} prompts: {counts} of {fewer}")
    draw(power, fewer, plot)
    print(f"power: {plot}")
    print(f"largest upper limit of false promotion: {worst:.4f}")


if __name__ == "__main__":
    main()
