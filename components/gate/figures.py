"""The figures a verdict rests on: each difference between two models with its bounds and what it could have seen.

There is one for each group: each measure with a margin, each slice, each constraint, on the prompts that it is about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.gate.distances import Distances
from components.gate.resampling import Floats, Resampling, lower_bound, mean, upper_bound
from components.gate.scores import Scores, UnusableScores
from components.gate.settings import AXES, GateSettings, axis_of
from lineage.frozen import Frozen

POWER = 0.8
Kind = Literal["axis", "slice", "constraint"]


@dataclass(frozen=True)
class Group:
    """Prompts whose mean on one measure is judged."""

    name: str
    measure: str
    kind: Kind
    members: NDArray[np.bool_]
    """(P,)"""
    margin: float
    range: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest score."""
    limit: float = 1.0
    """Of a constraint; see `components.gate.settings.Constraint`."""


def make_groups(scores: Scores, prompts: Sequence[str], settings: GateSettings) -> list[Group]:
    """Everything that the settings name, on ``prompts``.

    Raises:
        UnusableScores: something would be judged on too few prompts.
    """
    everyone = np.ones(len(prompts), dtype=np.bool_)
    # In an order of their own: JSON on its way here may have sorted the settings.
    measures = sorted(settings.margins, key=lambda measure: (AXES.index(axis_of(measure)), measure))
    groups = [Group(one, one, "axis", everyone, settings.margins[one], settings.range_of(one)) for one in measures]
    for name, rule in sorted(settings.slices.items()):
        members = np.array([_belongs(scores.attributes[prompt], rule.where) for prompt in prompts], dtype=np.bool_)
        groups.append(Group(name, rule.measure, "slice", members, rule.margin, settings.range_of(rule.measure)))
    for name, bound in sorted(settings.constraints.items()):
        members = np.array([scores.is_scored(prompt, bound.measure) for prompt in prompts], dtype=np.bool_)
        held = settings.range_of(bound.measure)
        groups.append(Group(name, bound.measure, "constraint", members, bound.margin, held, bound.limit))
    for group in groups:
        # The range of a distance of sets is not known, and no number of prompts follows from it.
        of_set = scores.is_set(group.measure)
        needed = settings.minimum_prompts if of_set else settings.prompts_for(group.margin, group.measure)
        if group.members.sum() < needed:
            raise UnusableScores(
                f"{group.kind} {group.name!r} has {group.members.sum()} prompts; a margin of {group.margin:g} on "
                f"scores from {group.range[0]:g} to {group.range[1]:g} needs {needed}, or not even a set without a "
                "failure could show that it holds"
            )
    return groups


def _belongs(attributes: Mapping[str, str | bool], where: Mapping[str, str | bool]) -> bool:
    return all(attributes.get(name) == value for name, value in where.items())


class Figure(Frozen):
    """What one axis, slice or constraint showed, in score units (higher is better)."""

    name: str
    measure: str
    kind: Kind
    prompts: int
    incumbent: float
    """Of the model compared with; in a comparison with the anchor, the anchor's."""
    candidate: float
    difference: float
    lower: float
    """One-sided lower bound of the difference, at the level of one decision."""
    upper: float
    lower_gain: float
    """One-sided lower bound at the level of gains: above 0 is a gain."""
    upper_loss: float
    """One-sided upper bound at the level of losses: below 0 is a loss."""
    margin: float
    limit: float = 1.0
    """Of a constraint: the largest share at all."""
    candidate_lower: float
    """One-sided lower bound of the candidate's own score."""
    candidate_upper: float
    error: float
    """Standard error of the difference."""
    detectable: float
    """The true gain that would be shown in 80 % of such evaluations; of a slice or constraint, the margin that an equal
    model would be shown to hold."""

    @property
    def within(self) -> bool:
        """Shown not to be worse by the margin or more."""
        return self.lower > -self.margin

    @property
    def holds(self) -> bool:
        """`within`, and the limit of a constraint as well."""
        return self.within and (self.limit >= 1 or -self.candidate_lower <= self.limit)

    @property
    def worse(self) -> bool:
        """Shown to be worse, be it within the margin."""
        return self.upper_loss < 0

    @property
    def over_limit(self) -> bool:
        """A constraint that the candidate is shown to break, whatever the incumbent does."""
        return -self.candidate_upper > self.limit


def per_prompt_figures(
    groups: Sequence[Group], candidate: Floats, other: Floats, resampling: Resampling, settings: GateSettings
) -> list[Figure]:
    """The figures of groups judged by their prompts' means; the prompt that nobody has seen loses the whole range.

    Args:
        candidate, other: (G, P), one row a group, within the group's range; what lies outside a group does not count.
    """
    if not groups:
        return []
    members = np.stack([group.members for group in groups])
    low, high = (np.array(ends) for ends in zip(*(group.range for group in groups), strict=True))
    width = high - low
    # Shares of the range, so that rounding is the same whatever the scores are.
    differences = (candidate - other) / width[:, None] * members
    levels = (candidate - low[:, None]) / width[:, None] * members
    sums = resampling.sums(np.concatenate([differences, levels]).T, 1.0)
    unseen = resampling.unseen
    totals = resampling.sums(members.T.astype(np.float64), 1.0) + unseen
    moved, own = sums[:, : len(groups)], sums[:, len(groups) :]
    between = [(moved + sign * unseen) / totals * width for sign in (-1, 1)]
    owned = [low + (own + sign * unseen) / totals * width for sign in (0, 1)]
    shown = [
        [mean(row[group.members]) for row in (candidate[g], other[g], candidate[g] - other[g])]
        for g, group in enumerate(groups)
    ]
    errors = [
        _deviation((candidate[g] - other[g])[group.members]) / math.sqrt(group.members.sum())
        for g, group in enumerate(groups)
    ]
    own_bounds = [lower_bound(owned[0], settings.level), upper_bound(owned[1], settings.level)]
    return _figures(groups, shown, between, own_bounds, errors, settings)


def set_level_figures(
    groups: Sequence[Group], measures: Mapping[str, Distances], other: str, resampling: Resampling, s: GateSettings
) -> list[Figure]:
    """The figures of groups judged by a distance of sets, the candidate against the model ``other``."""
    shown, resampled = [], []
    for group in groups:
        distances = measures[group.measure]
        scores = distances.score("candidate"), distances.score(other)
        shown.append([*scores, scores[0] - scores[1]])
        resampled.append(distances.differences("candidate", other, resampling))
    if not groups:
        return []
    # Weights vary a little less than a sample does, and no picture stands for those that nobody has seen.
    centre, wider = np.array(shown)[:, 2], math.sqrt((len(groups[0].members) + 1) / (len(groups[0].members) - 1))
    between = centre + (np.stack(resampled, axis=1) - centre) * wider
    errors = [_deviation(column) for column in between.T]
    return _figures(groups, shown, [between, between], [np.array(shown)[:, 0]] * 2, errors, s)


def _figures(
    groups: Sequence[Group],
    shown: Sequence[Sequence[float]],
    between: Sequence[Floats],
    own: Sequence[Floats],
    errors: Sequence[float],
    settings: GateSettings,
) -> list[Figure]:
    """Args: between: (B, G) twice, for bounds from below and from above; own: the candidate's bounds, (G,) twice;
    errors: standard errors of the differences."""
    low, high = between
    lower, lower_gain = (lower_bound(low, level) for level in (settings.level, settings.gain_level))
    upper, upper_loss = (upper_bound(high, level) for level in (settings.level, settings.loss_level))
    figures = []
    for g, (group, (candidate, other, difference)) in enumerate(zip(groups, shown, strict=True)):
        reach = difference - float((lower_gain if group.kind == "axis" else lower)[g])
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
                candidate_lower=float(own[0][g]),
                candidate_upper=float(own[1][g]),
                error=errors[g],
                detectable=reach + NormalDist().inv_cdf(POWER) * errors[g],
            )
        )
    return figures


def _deviation(values: Floats) -> float:
    return math.sqrt(mean((values - mean(values)) ** 2) * len(values) / (len(values) - 1))
