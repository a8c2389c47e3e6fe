"""What many decisions add up to: `python -m benchmarks.gate_sequence [--sequences N] [--chains N]`.

First, tries on one evaluation set: 50 candidates after another are judged on the same 400 prompts against one champion,
who is as good as they are, or better than each by the margin on one axis. It prints in how many sequences one was ever
promoted, by the gate as shipped and by what it was before (percentile bounds at 0.025, every decision for itself).

Then drift: 100 retrainings, each candidate a little worse on one slice and better elsewhere than the champion it is
judged against, with and without an anchor; a new evaluation set each time the old one is spent. It prints how far the
slice fell against the first champion, in the worst of all chains.

The last lines are the exact 95 % upper limit of sequences with a false promotion, at most 0.05 plus what so few
sequences cannot tell, and the deepest fall of a slice in margins.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate_calibration import Floats, promoted_before, upper_limit
from components.gate.figures import Group, per_prompt_figures
from components.gate.resampling import Resampling
from components.gate.settings import AXES, GateSettings, Slice
from components.gate.verdict import rule

PROMPTS, TRIES, MARGIN, OWN = 400, 50, 0.05, 0.1
BLOCK = 20
"""Sequences that are simulated one after another."""
STEADY, BETTER = 0.03, 0.05
"""Of retrainings: the spread of a model's scores on one prompt, and what each candidate gains on another axis."""
SKINS = ("dark", "light", "tan")
SLICES = {skin: Slice(measure="alignment", where={"skin": skin}, margin=MARGIN) for skin in SKINS}
SETTINGS = GateSettings(margins=dict.fromkeys(AXES, MARGIN), slices=SLICES, ranges=dict.fromkeys(AXES, (0.25, 0.75)))
RESAMPLING = Resampling(PROMPTS, SETTINGS.resamples, seed=0)
EVERYONE = np.ones(PROMPTS, dtype=np.bool_)


def tries(generator: np.random.Generator, shifts: Sequence[float]) -> Floats:
    """(TRIES, A, P): differences to one champion, whose own luck on each prompt is part of every one of them."""
    champion = OWN / np.sqrt(2) * generator.normal(size=(len(AXES), PROMPTS))
    own = OWN / np.sqrt(2) * generator.normal(size=(TRIES, len(AXES), PROMPTS))
    made: Floats = own - champion + np.array(shifts)[:, None]
    return made


def ever_promoted(differences: Floats) -> bool:
    """Whether any of so many decisions is a promotion."""
    within = differences[: SETTINGS.life].reshape(-1, PROMPTS)
    groups = [Group(axis, axis, "axis", EVERYONE, MARGIN, SETTINGS.range_of(axis)) for axis in AXES] * SETTINGS.life
    half = np.full_like(within, 0.5)
    figures = per_prompt_figures(groups, half + within, half, RESAMPLING, SETTINGS)
    return any(rule(figures[start : start + 3]).decision == "promote" for start in range(0, len(figures), 3))


def block_of_tries(block: int, sequences: int, shifts: Sequence[float]) -> tuple[int, int]:
    """In how many sequences of a block something is promoted: now, and by the former rule."""
    generator, now, before = np.random.default_rng([1, block]), 0, 0
    for _ in range(sequences):
        differences = tries(generator, shifts)
        now += ever_promoted(differences)
        before += promoted_before(differences, MARGIN) > 0
    return now, before


@dataclass
class Chain:
    """A hundred retrainings: what each slice of the champion has gained against the first one."""

    cost: float
    gain: float
    anchored: bool
    promoted: int = 0

    def run(self, seed: int, retrainings: int = 100) -> Floats:
        """(3,): the skins' true alignment at the end, the first champion's being 0."""
        generator = np.random.default_rng(seed)
        skins = np.arange(PROMPTS) % 3
        groups = [Group(axis, axis, "axis", EVERYONE, MARGIN, SETTINGS.range_of(axis)) for axis in AXES]
        held = SETTINGS.range_of("alignment")
        groups += [Group(skin, "alignment", "slice", skins == place, MARGIN, held) for place, skin in enumerate(SKINS)]
        change = np.array([-self.cost, self.gain, self.gain])
        true = np.zeros(3)
        for retraining in range(retrainings):
            if retraining % SETTINGS.life == 0:  # a new set: everybody's luck is drawn anew
                first, champion = (self._scores(generator, gained, skins) for gained in (np.zeros(3), true))
                first = champion if not self.promoted else first
            candidate = self._scores(generator, true + change, skins)
            candidate[1] += BETTER
            rows = [[scores[0], scores[1], scores[2], *[scores[0]] * 3] for scores in (candidate, champion, first)]
            made, *others = (0.5 + np.stack(row) for row in rows)
            against = [per_prompt_figures(groups, made, other, RESAMPLING, SETTINGS) for other in others]
            if rule(against[0], against[1] if self.anchored and self.promoted else ()).decision == "promote":
                true, champion, self.promoted = true + change, candidate, self.promoted + 1
                champion[1] -= BETTER
        return true

    def end(self, seed: int) -> tuple[float, int]:
        """What the worst slice has gained at the end, and how many candidates were promoted."""
        chain = replace(self)
        return float(chain.run(seed).min()), chain.promoted

    @staticmethod
    def _scores(generator: np.random.Generator, gained: Floats, skins: NDArray[np.int64]) -> Floats:
        scores: Floats = STEADY / np.sqrt(2) * generator.normal(size=(len(AXES), PROMPTS))
        scores[0] += gained[skins]
        return scores


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1, help="the same figures, sooner")
    asked = parser.parse_args()
    with ProcessPoolExecutor(asked.processes) as pool:
        simulate(asked.sequences, asked.chains, pool)


def simulate(sequences: int, chained: int, pool: Executor) -> None:
    """Sequences in blocks, and each chain, in processes of their own."""
    worst = 0.0
    for name, shifts in ("all equal", (0.0,) * 3), ("one axis at -margin, others better", (-MARGIN, 0.2, 0.2)):
        blocks = [min(BLOCK, sequences - start) for start in range(0, sequences, BLOCK)]
        found = list(pool.map(block_of_tries, range(len(blocks)), blocks, [shifts] * len(blocks)))
        now, before = (sum(counts) for counts in zip(*found, strict=True))
        limit = upper_limit(now, sequences)
        worst = max(worst, limit)
        shares = f"before {before / sequences:.3f}, now {now / sequences:.3f} (at most {limit:.3f})"
        print(f"{TRIES} tries, {name}: a false promotion in {shares} of {sequences} sequences", flush=True)
    deepest = 0.0
    for (cost, gain), anchored in product(((0.025, 0.017), (0.005, 0.01), (0.002, 0.01)), (False, True)):
        ends = list(pool.map(Chain(cost, gain, anchored).end, range(chained)))
        fallen = min(least for least, _ in ends)
        deepest = max(deepest, -fallen / MARGIN if anchored else 0.0)
        moves = sum(promoted for _, promoted in ends) / chained
        step = f"each {-cost:+g} on one slice, {gain:+g} elsewhere, {'with' if anchored else 'without'} an anchor"
        print(f"{step}: {moves:.1f} of 100 promoted, the slice fell to {fallen:+.3f} at worst", flush=True)
    print(f"false promotion in a set's whole life: {worst:.3f}; deepest fall of a slice: {deepest:.2f} margins")


if __name__ == "__main__":
    main()
