"""The figures a verdict rests on: each difference between two models with its bounds and what it could have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from components.gate.distances import Distances
from components.gate.resampling import Floats, Resampling, bounds, mean
from components.gate.scores import UnusableScores
from components.gate.settings import GateSettings
from components.gate.slices import Group, Kind

POWER = 0.8


class Figure(BaseModel):
    """What one axis, slice or constraint showed, in score units (higher is better)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    measure: str
    kind: Kind
    prompts: int
    incumbent: float
    """Of the model compared with; in a comparison with the anchor, the anchor's."""
    candidate: float
    difference: float
    lower: float
    """One-sided lower α bound of the difference."""
    upper: float
    lower_gain: float
    """One-sided lower α/k bound, k the number of measures that decide: above 0 is a gain."""
    upper_loss: float
    """One-sided upper α/k bound: below 0 is a loss."""
    margin: float
    limit: float = 1.0
    """Of a constraint: the largest share at all."""
    detectable: float
    """The true gain (of a slice or constraint: loss) that this sample size shows in 80 % of evaluations."""

    @property
    def holds(self) -> bool:
        """Not worse by the margin or more."""
        return self.lower > -self.margin

    @property
    def harmed(self) -> bool:
        """Worse, and not shown to be within the margin."""
        return self.upper < 0 and not self.holds

    @property
    def over_limit(self) -> bool:
        """A constraint that the candidate breaks whatever the incumbent does."""
        return self.kind == "constraint" and -self.candidate > self.limit


def per_prompt_figures(
    groups: Sequence[Group], candidate: Floats, other: Floats, resampling: Resampling, settings: GateSettings
) -> list[Figure]:
    """The figures of groups judged by their prompts' means.

    Args:
        candidate, other: (G, P), one row a group; what lies outside a group does not count.

    Raises:
        UnusableScores: some resample has none of a slice's prompts.
    """
    if not groups:
        return []
    members = np.stack([group.members for group in groups])
    differences = candidate - other
    resampled = resampling.sums((differences * members).T)
    whole = members.all(axis=1)
    # A whole set is drawn as often as it has prompts; a slice's share can differ where small strata were joined.
    totals = resampling.sums(members[~whole].T.astype(np.float64))
    resampled[:, whole] /= members.shape[1]
    if not (totals > 0).all():
        raise UnusableScores("a slice is too small to be resampled: some resamples have none of its prompts")
    resampled[:, ~whole] /= totals
    levels = [
        [mean(row[group.members]) for row in (candidate[g], other[g], differences[g])] for g, group in enumerate(groups)
    ]
    return _figures(groups, levels, resampled, settings)


def set_level_figures(
    groups: Sequence[Group], measures: Mapping[str, Distances], other: str, resampling: Resampling, s: GateSettings
) -> list[Figure]:
    """The figures of groups judged by a distance of sets, the candidate against the model ``other``."""
    levels, resampled = [], []
    for group in groups:
        distances = measures[group.measure]
        scores = distances.score("candidate"), distances.score(other)
        levels.append([*scores, scores[0] - scores[1]])
        resampled.append(distances.differences("candidate", other, resampling))
    return _figures(groups, levels, np.stack(resampled, axis=1), s) if groups else []


def _figures(
    groups: Sequence[Group], levels: Sequence[Sequence[float]], resampled: Floats, settings: GateSettings
) -> list[Figure]:
    shared = settings.alpha / max(1, len(settings.margins))
    lower, upper = bounds(resampled, settings.alpha)
    lower_gain, upper_loss = bounds(resampled, shared)
    normal = NormalDist()
    figures = []
    for g, (group, (candidate, other, difference)) in enumerate(zip(groups, levels, strict=True)):
        error = math.sqrt(mean((resampled[:, g] - mean(resampled[:, g])) ** 2))
        alpha = shared if group.kind == "axis" else settings.alpha
        figures.append(
            Figure(
                name=group.name,
                measure=group.measure,
                kind=group.kind,
                prompts=int(group.members.sum()),
                incumbent=other,
                candidate=candidate,
                difference=difference,
                lower=float(lower[g]),
                upper=float(upper[g]),
                lower_gain=float(lower_gain[g]),
                upper_loss=float(upper_loss[g]),
                margin=group.margin,
                limit=group.limit,
                detectable=(normal.inv_cdf(1 - alpha) + normal.inv_cdf(POWER)) * error,
            )
        )
    return figures
