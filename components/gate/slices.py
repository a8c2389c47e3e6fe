"""What is judged: each measure with a margin, each slice, each constraint, and the strata that prompts are drawn in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.gate.scores import UnusableScores
from components.gate.settings import AXES, GateSettings, axis_of

Attributes = Mapping[str, Mapping[str, str | bool]]
"""Prompt -> its attributes."""
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
    limit: float = 1.0
    """Of a constraint; see `components.gate.settings.Constraint`."""


def make_groups(prompts: Sequence[str], attributes: Attributes, settings: GateSettings) -> list[Group]:
    """Everything that the settings name.

    Raises:
        UnusableScores: a slice or the whole set has too few prompts.
    """
    everyone = np.ones(len(prompts), dtype=np.bool_)
    # In an order of their own: JSON on its way here may have sorted the settings.
    measures = sorted(settings.margins, key=lambda measure: (AXES.index(axis_of(measure)), measure))
    groups = [Group(measure, measure, "axis", everyone, settings.margins[measure]) for measure in measures]
    for name, rule in sorted(settings.slices.items()):
        members = np.array([_belongs(attributes[prompt], rule.where) for prompt in prompts], dtype=np.bool_)
        groups.append(Group(name, rule.measure, "slice", members, rule.margin))
    for name, bound in sorted(settings.constraints.items()):
        groups.append(Group(name, bound.measure, "constraint", everyone, bound.margin, bound.limit))
    for group in groups:
        if group.members.sum() < settings.minimum_prompts:
            raise UnusableScores(
                f"{group.kind} {group.name!r} has {group.members.sum()} prompts, "
                f"fewer than minimum_prompts = {settings.minimum_prompts}"
            )
    return groups


def stratum_keys(prompts: Sequence[str], attributes: Attributes, settings: GateSettings) -> list[Hashable]:
    """For each prompt its values of every attribute that a slice names."""
    named = sorted({name for rule in settings.slices.values() for name in rule.where})
    return [tuple(str(attributes[prompt].get(name)) for name in named) for prompt in prompts]


def _belongs(attributes: Mapping[str, str | bool], where: Mapping[str, str | bool]) -> bool:
    return all(attributes.get(name) == value for name, value in where.items())
