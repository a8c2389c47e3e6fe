"""Margins from retrains of one recipe: how much two of them, which nobody calls different, seem to differ.

A margin is to be what such a retrain is shown to hold against another one. So each is judged against each other by the
gate's own figures, and the margin is the largest loss that could not be ruled out: two retrains' real difference, which
another seed makes, and what this many prompts cannot see are both in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import mean, stdev
from typing import Any

import pandas as pd

from components.gate.figures import Figure
from components.gate.scores import Scores, UnusableScores
from components.gate.settings import GateSettings
from components.gate.verdict import compare

FEWEST = 3
"""Retrains, without which their spread is a guess."""


@dataclass(frozen=True)
class MeasuredMargin:
    """What retrains show of one axis, slice or constraint."""

    margin: float
    of_a_prompt: float
    """σ of a prompt's difference between two of them."""
    of_a_retrain: float
    """σ of a retrain's mean."""


def measure_margins(retrains: Sequence[Scores], settings: GateSettings) -> dict[tuple[str, str], MeasuredMargin]:
    """(kind, name) of everything that the settings judge -> its margin, rounded up to two digits.

    Args:
        retrains: the scores of each, as candidate, on one evaluation set.
        settings: whose own margins do not count.

    Raises:
        UnusableScores: they are too few, of different evaluation sets, or cannot carry a verdict.
    """
    if len(retrains) < FEWEST:
        raise UnusableScores(f"{len(retrains)} retrains say little of how they vary: {FEWEST} at least")
    if any((one.attributes, one.seeds) != (retrains[0].attributes, retrains[0].seeds) for one in retrains):
        raise UnusableScores("the retrains were not judged on one evaluation set: evaluate them anew")
    wide = _without_margins(settings)
    found: dict[tuple[str, str], list[Figure]] = {}
    for one, other in permutations(retrains, 2):
        for figure in compare(_against(one, other), wide, retrains[0].open)[0]:
            found.setdefault((figure.kind, figure.name), []).append(figure)
    return {
        key: MeasuredMargin(
            margin=_round_up(max(-figure.lower for figure in figures)),
            of_a_prompt=mean(figure.error * math.sqrt(figure.prompts) for figure in figures),
            of_a_retrain=stdev(figure.candidate for figure in figures[:: len(retrains) - 1]),
        )
        for key, figures in found.items()
    }


def as_settings(margins: Mapping[tuple[str, str], MeasuredMargin]) -> dict[str, Any]:
    """The margins as the section ``gate`` of a configuration."""
    section: dict[str, Any] = {}
    for (kind, name), measured in margins.items():
        if kind == "axis":
            section.setdefault("margins", {})[name] = measured.margin
        else:
            section.setdefault(f"{kind}s", {})[name] = {"margin": measured.margin}
    return section


def _without_margins(settings: GateSettings) -> GateSettings:
    def widest(measure: str) -> float:
        low, high = settings.range_of(measure)
        return high - low

    widened = {
        kind: {name: rule.model_copy(update={"margin": widest(rule.measure)}) for name, rule in rules.items()}
        for kind, rules in (("slices", settings.slices), ("constraints", settings.constraints))
    }
    return settings.model_copy(update={"margins": {name: widest(name) for name in settings.margins}, **widened})


def _against(one: Scores, other: Scores) -> Scores:
    """One retrain as the candidate, another as the incumbent."""
    parts = [one.table[one.table["model"] == "candidate"], other.table[other.table["model"] == "candidate"]]
    table = pd.concat([parts[0], parts[1].assign(model="incumbent")])
    sets = one.sets
    if sets is not None and other.sets is not None:
        theirs = {measure.measure: measure.features["candidate"] for measure in other.sets.measures}
        measures = (replace(m, features={**m.features, "incumbent": theirs[m.measure]}) for m in sets.measures)
        sets = replace(sets, measures=tuple(measures))
    return replace(one, table=table, sets=sets, anchored=False)


def _round_up(value: float) -> float:
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return math.ceil(value * 10.0**digits) / 10.0**digits
