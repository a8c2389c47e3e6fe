"""How often the policy as shipped promotes what it should not: `python -m benchmarks.gate_shipped SCORES SCORES …`.

SCORES are those of three retrains or more by one recipe, as for ``triptych gate calibrate``. The configuration's own
margins, ranges, slices, constraints and resamples judge simulated pairs of models, at the level of one decision of an
evaluation set's life. The incumbent is one of the retrains; the candidate differs from it as two retrains do: their
differences, centred and drawn again prompt by prompt within skin, glasses, beard and number of seeds.

A row is a scenario: nothing differs; or one axis, slice or constraint has a true loss of exactly its margin, by a shift
of all its prompts, or by failures (some prompts, drawn by chance, get the lowest score there is), and the other axes
gain two margins. It prints how often such candidates were promoted, with the exact one-sided 95 % upper limit. The last
line is the largest of these.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.gate_calibration import upper_limit
from components.gate.figures import Group, make_groups, per_prompt_figures
from components.gate.resampling import Floats, Resampling
from components.gate.scores import Scores, prompt_means, read_scores
from components.gate.settings import GateSettings
from components.gate.verdict import rule
from lineage.scores import EVALUATION_FILE
from pipelines.configuration import read_sections

STRATA, TOGETHER = ("skin", "glasses", "beard"), 25


class Retrains:
    """What retrains of one recipe score, and pairs of models that are simulated from it."""

    def __init__(self, retrains: Sequence[Scores], settings: GateSettings) -> None:
        first, self.settings = retrains[0], settings
        self.groups = make_groups(first, first.open, settings)
        ranges = {group.measure: group.range for group in self.groups}
        means = [prompt_means(one, first.open, ranges, set(ranges)) for one in retrains]
        self.scores = [np.array([one[group.measure]["candidate"] for group in self.groups]) for one in means]
        """Of each retrain, (G, P)."""
        self.kinds = [(*(first.attributes[p].get(name) for name in STRATA), len(first.seeds[p])) for p in first.open]

    def pair(self, generator: np.random.Generator, loser: Group | None, failing: bool) -> tuple[Floats, Floats]:
        """Candidate and incumbent, (G, P) each."""
        one, other = generator.permutation(len(self.scores))[:2]
        incumbent, differences = self.scores[other], self.scores[one] - self.scores[other]
        for g, group in enumerate(self.groups):
            differences[g] -= differences[g][group.members].mean()
            if loser and group.measure == loser.measure:
                differences[g] += np.where(loser.members, 0.0 if failing else -loser.margin, loser.margin)
            elif loser and group.kind == "axis":
                differences[g] += 2 * group.margin
        drawn = np.empty(len(self.kinds), dtype=np.int64)
        for kind in set(self.kinds):
            places = np.flatnonzero([one == kind for one in self.kinds])
            drawn[places] = generator.choice(places, len(places))
        candidate, incumbent = (incumbent + differences)[:, drawn], incumbent[:, drawn]
        if loser and failing:
            failures = loser.members & (generator.random(len(drawn)) < self.share(loser))
            for g, group in enumerate(self.groups):
                if group.measure == loser.measure:
                    candidate[g, failures] = group.range[0]
        return candidate, incumbent

    def share(self, loser: Group) -> float:
        """Of the prompts that have to fail for a loss of the margin; above 1: so much cannot be lost."""
        of = np.mean(self.scores, axis=0)[self.groups.index(loser)][loser.members]
        return loser.margin / float(of.mean() - loser.range[0])

    def promoted(self, pairs: int, loser: Group | None, failing: bool) -> int:
        """How many of so many pairs are promoted."""
        generator, count = np.random.default_rng(0), 0
        for number in range(pairs):
            if number % TOGETHER == 0:
                resampling = Resampling(len(self.kinds), self.settings.resamples, number)
            figures = per_prompt_figures(self.groups, *self.pair(generator, loser, failing), resampling, self.settings)
            count += rule(figures).decision == "promote"
        return count


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("retrains", nargs="+", type=Path, metavar="SCORES")
    parser.add_argument("--config", type=Path, default=Path("examples/avatars/retrain.yaml"))
    parser.add_argument("--pairs", type=int, default=500, help="simulated pairs a scenario")
    asked = parser.parse_args()
    places = [place if (place / EVALUATION_FILE).exists() else place / "scores" for place in asked.retrains]
    retrains = Retrains([read_scores(place)[0] for place in places], read_sections(asked.config, "gate").gate)
    scenarios: list[tuple[str, Group | None, bool]] = [("nothing differs", None, False)]
    for group in retrains.groups:
        told = f"{group.kind} {group.name} at -{group.margin:g}"
        if group.kind == "axis":
            scenarios.append((f"{told}, all prompts", group, False))
        scenarios.append((f"{told}, {retrains.share(group):.1%} fail", group, True))
    worst = 0.0
    for told, loser, failing in scenarios:
        if loser and failing and retrains.share(loser) > 1:
            print(f"{told:60} cannot be: its scores have not so much to lose")
            continue
        count = retrains.promoted(asked.pairs, loser, failing)
        limit = upper_limit(count, asked.pairs)
        worst = max(worst, limit)
        print(f"{told:60}{count:6} of {asked.pairs} promoted, at most {limit:.4f}", flush=True)
    print(f"largest upper limit of false promotion: {worst:.4f}")


if __name__ == "__main__":
    main()
