"""KID and CMMD against another implementation, and how wide the gate's bounds of them are:
`python -m benchmarks.set_distances [--rounds N] [--prompts N] [--references N]`.

First evaluate's and the gate's distances beside those made of scikit-learn's kernels, and of plain loops where sets are
small. Then simulated evaluations go through the gate's own figures: features of two models and of references are drawn,
hundreds of times, with the references kept or drawn anew each time. Printed are how often the interval at 2 · 2.5 %
held the true difference, and how much wider it is than 2 · 1.96 standard deviations of what was measured; a fair
interval has 95 % and 0. The last line is the largest relative difference of the first part.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from components.evaluate.distances import CMMD_BANDWIDTH, CMMD_SCALE, cmmd, kid
from components.evaluate.judging import KERNELS
from components.gate.distances import Distances
from components.gate.figures import Figure, Group, set_level_figures
from components.gate.resampling import Resampling
from components.gate.scores import Scores
from components.gate.settings import AXES, GateSettings
from lineage.scores import MODELS, REFERENCES, SetMeasure, Sets

Floats = NDArray[np.float64]
SETTINGS = GateSettings(margins={**dict.fromkeys(AXES, 0.05), "realism/set": 0.05}, alpha=0.025, life=1, resamples=4000)
WIDTH = 48
"""Features a picture; their spread falls from 1 to a tenth, as in real ones."""
SPREADS = np.geomspace(1.0, 0.1, WIDTH)
BESIDE = 0.25
"""How far a model's pictures lie from the references, in spreads; a worse one lies twice as far."""


def by_another(metric: str, one: Floats, other: Floats, pairs_with_itself: bool) -> float:
    """The distance by scikit-learn's kernels."""

    def alike(a: Floats, b: Floats) -> Floats:
        made: Floats = (
            polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)
            if metric == "kid"
            else CMMD_SCALE * rbf_kernel(a, b, gamma=1 / (2 * CMMD_BANDWIDTH**2))
        )
        return made

    def within(a: Floats) -> float:
        found = alike(a, a)
        if pairs_with_itself:
            return float(found.mean())
        return float((found.sum() - np.trace(found)) / (len(a) * (len(a) - 1)))

    return within(one) + within(other) - 2 * float(alike(one, other).mean())


def by_loops(metric: str, one: Floats, other: Floats) -> float:
    """The distance without pairs of a picture with itself, pair by pair."""

    def alike(a: Floats, b: Floats) -> float:
        if metric == "kid":
            return float((float(a @ b) / len(a) + 1) ** 3)
        return CMMD_SCALE * float(np.exp(-((a - b) @ (a - b)) / (2 * CMMD_BANDWIDTH**2)))

    def within(rows: Floats) -> float:
        return float(np.mean([alike(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]))

    return within(one) + within(other) - 2 * float(np.mean([alike(a, b) for a in one for b in other]))


def drawn(generator: np.random.Generator, metric: str, centre: float, common: Floats) -> Floats:
    """(N, WIDTH): features of pictures, half of whose differences are their prompts'; of length one for CMMD."""
    rows = SPREADS * (centre + np.sqrt(0.5) * (common + generator.normal(size=common.shape)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cmmd" else rows


def distances(metric: str, pictures: dict[str, Floats], references: Floats) -> Distances:
    """What the gate knows of one evaluation, one picture a prompt."""
    names = [f"p{number:05d}" for number in range(len(pictures["candidate"]))]
    features = {who: rows.astype(np.float32) for who, rows in {**pictures, REFERENCES: references}.items()}
    measure = SetMeasure("realism/set", KERNELS[metric], features)
    rows = tuple((name, 7) for name in names)
    scores = Scores(pd.DataFrame(), {n: {} for n in names}, {n: [7] for n in names}, sets=Sets(rows, (measure,)))
    return Distances(measure, scores, names)


def figure(metric: str, pictures: dict[str, Floats], references: Floats, seed: int) -> Figure:
    """The gate's figure: how much better the candidate is than the incumbent."""
    found = distances(metric, pictures, references)
    everyone = np.ones(len(found.sizes), dtype=np.bool_)
    group = Group("realism/set", "realism/set", "axis", everyone, 0.05)
    resampling = Resampling(len(everyone), SETTINGS.resamples, seed)
    return set_level_figures([group], {"realism/set": found}, "incumbent", resampling, SETTINGS)[0]


def check() -> float:
    """The largest relative difference between ours and the others'."""
    generator, largest = np.random.default_rng(0), 0.0
    for metric in ("kid", "cmmd"):
        for count, others in ((40, 40), (300, 300), (200, 320)):
            one = drawn(generator, metric, BESIDE, generator.normal(size=(count, WIDTH)))
            other = drawn(generator, metric, 0.0, generator.normal(size=(others, WIDTH)))
            # As the gate reads them from the file.
            kept, known = (rows.astype(np.float32).astype(np.float64) for rows in (one, other))
            ours = -distances(metric, dict.fromkeys(MODELS[:2], one), other).score("candidate")
            compared = [("gate", ours, by_another(metric, kept, known, False))]
            if count <= 40:
                compared.append(("gate, loops", ours, by_loops(metric, kept, known)))
            # KID is the mean over subsets where sets differ in size, and then no other's number.
            if metric == "cmmd" or count == others:
                reported = kid(one, other) if metric == "kid" else cmmd(one, other)
                compared.append(("evaluate", reported, by_another(metric, one, other, metric == "cmmd")))
            for who, mine, theirs in compared:
                apart = abs(mine - theirs) / abs(theirs)
                print(f"{metric:5} {who:12} {count} and {others}: {mine:.9g}, by another {theirs:.9g} ({apart:.1e})")
                largest = max(largest, apart)
    return largest


def simulate(metric: str, anew: bool, worse: bool, rounds: int, prompts: int, references: int) -> Iterator[Figure]:
    """The figures of so many evaluations; a model that is worse lies twice as far from the references."""
    generator = np.random.default_rng(1)
    known = drawn(generator, metric, 0.0, generator.normal(size=(references, WIDTH)))
    for number in range(rounds):
        if anew:
            known = drawn(generator, metric, 0.0, generator.normal(size=(references, WIDTH)))
        common = generator.normal(size=(prompts, WIDTH))
        pictures = {
            "candidate": drawn(generator, metric, BESIDE * (2 if worse else 1), common),
            "incumbent": drawn(generator, metric, BESIDE, common),
        }
        yield figure(metric, pictures, known, number)


def main() -> None:
    """Check, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--references", type=int, default=200)
    asked = parser.parse_args()
    largest = check()
    print(f"\n{asked.prompts} prompts, {asked.references} references, {asked.rounds} evaluations a row\n")
    print("| distance | references | candidate | holds the truth | wider than fair by | gain claimed |")
    print("|---|---|---|---|---|---|")
    for metric, anew, worse in product(("kid", "cmmd"), (False, True), (False, True)):
        figures = list(simulate(metric, anew, worse, asked.rounds, asked.prompts, asked.references))
        measured = np.array([one.difference for one in figures])
        # Without bias, so that the mean over many evaluations is the truth; between equals it is known.
        truth = float(measured.mean()) if worse else 0.0
        fair = 2 * 1.96 * float(measured.std(ddof=1))
        held = np.mean([one.lower <= truth <= one.upper for one in figures])
        wider = np.mean([one.upper - one.lower for one in figures]) / fair - 1
        gains = np.mean([one.lower > 0 for one in figures])
        kept, who = "drawn anew" if anew else "fixed", "worse" if worse else "equal"
        print(f"| {metric} | {kept} | {who} | {held:.1%} | {wider:+.0%} | {gains:.1%} |", flush=True)
    print(f"largest relative difference {largest:.1e}")


if __name__ == "__main__":
    main()
