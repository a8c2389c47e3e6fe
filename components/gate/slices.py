"""What is judged: each measure with a margin, each slice and each constraint, on the prompts that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.gate.scores import Scores, UnusableScores
from components.gate.settings import AXES, GateSettings, axis_of

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
