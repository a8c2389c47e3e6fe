"""The verdict: a pure function of the scores and the gate's settings.

The differences (candidate − incumbent) of the prompts are resampled (`components.gate.resampling`). With one-sided α,
and k measures that decide, three at least:

- **reject**: a constraint fails, or an axis or slice has its upper α bound below 0 and its lower α bound not above
  −margin, against the incumbent or against the anchor;
- **promote**: every axis, slice and constraint has its lower α bound above −margin, against both; some axis has its
  lower α/k bound above 0, and no axis has its upper α/k bound below 0, against the incumbent;
- **invalid**: the scores cannot be used; never promoted;
- **hold**: anything else: no gain, a trade-off, or inconclusive.

Percentile bounds are monotone in the scores, which BCa and studentised ones are not. They are exchanged with their
signs where the models are, and a gain is then a loss: so of two models at most one is promoted over the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from components.gate.distances import Distances
from components.gate.figures import Figure, per_prompt_figures, set_level_figures
from components.gate.resampling import Resampling, make_strata
from components.gate.scores import Scores, UnusableScores, check_sets, prompt_means
from components.gate.settings import GateSettings, missing_axes
from components.gate.slices import Group, make_groups, stratum_keys

Decision = Literal["promote", "hold", "reject", "invalid"]


class Ruling(BaseModel):
    """A decision with its reasons and every figure it rests on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Decision
    reasons: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    """Against the incumbent."""
    anchor: tuple[Figure, ...] = ()
    """Against the last version that a person approved, where that is another one."""


def decide(scores: Scores, settings: GateSettings) -> Ruling:
    """Judge a candidate against the incumbent, and against the anchor where it was scored."""
    try:
        return rule(*_compare(scores, settings))
    except UnusableScores as error:
        return Ruling(decision="invalid", reasons=(str(error),))


def rule(figures: Sequence[Figure], anchor: Sequence[Figure] = ()) -> Ruling:
    """The decision that figures lead to."""
    failed = [_broken(f) for f in figures if f.over_limit]
    failed += [_harmed(f) for f in figures if f.harmed and not f.over_limit]
    failed += [f"{AGAINST_ANCHOR}: {_harmed(f)}" for f in anchor if f.harmed]
    unproven = [_unproven(f) for f in figures if not f.holds]
    unproven += [f"{AGAINST_ANCHOR}: {_unproven(f)}" for f in anchor if not f.holds]
    axes = [figure for figure in figures if figure.kind == "axis"]
    gains = [f"gain: {_interval(f)}" for f in axes if f.lower_gain > 0]
    losses = [
        f"trade-off: {_interval(f)}: within the margin of {f.margin:g}, but worse" for f in axes if f.upper_loss < 0
    ]
    decision: Decision = "hold"
    if failed:
        decision, reasons = "reject", failed
    elif unproven:
        reasons = [f"inconclusive: {reason}" for reason in unproven]
    elif losses:
        reasons = losses
    elif not gains:
        seen = ", ".join(f"{f.detectable:.2g} in {f.name}" for f in axes)
        reasons = [
            "no gain: every axis holds, none is better: " + "; ".join(_interval(f) for f in axes),
            f"gains of {seen} would each have been seen in 80 % of evaluations of this size",
        ]
    else:
        rest = len(figures) - len(axes)
        held = f"all {len(axes)} axes and {rest} slices and constraints hold within their margins"
        decision, reasons = "promote", [*gains, held + (", also against the approved version" if anchor else "")]
    return Ruling(decision=decision, reasons=tuple(reasons), figures=tuple(figures), anchor=tuple(anchor))


AGAINST_ANCHOR = "against the last version that a person approved"


def _harmed(figure: Figure) -> str:
    what = "hard constraint " if figure.kind == "constraint" else ""
    return f"{what}{_interval(figure)}: worse, and not within the margin of {figure.margin:g}"


def _broken(figure: Figure) -> str:
    return f"hard constraint {figure.name}: a share of {-figure.candidate:.3f} is over the limit of {figure.limit:g}"


def _unproven(figure: Figure) -> str:
    return f"{_interval(figure)}: a loss of {figure.margin:g} cannot be ruled out with {figure.prompts} prompts"


def _interval(figure: Figure) -> str:
    return (
        f"{figure.name} {figure.incumbent:.3f} -> {figure.candidate:.3f} "
        f"({figure.difference:+.3f}, interval {figure.lower:+.3f} to {figure.upper:+.3f})"
    )


def _compare(scores: Scores, settings: GateSettings) -> tuple[list[Figure], list[Figure]]:
    """The figures against the incumbent, and against the anchor."""
    if scores.unusable:
        raise UnusableScores(scores.unusable)
    if unset := missing_axes(settings.margins):
        raise UnusableScores(f"no margin for {', '.join(unset)}: set gate.margins for every axis")
    groups = make_groups(scores.prompts, scores.attributes, settings)
    stored = {measure.measure: measure for measure in scores.sets.measures} if scores.sets else {}
    for group in groups:
        if group.measure in stored and group.kind != "axis":
            raise UnusableScores(f"{group.kind} {group.name!r}: {group.measure} judges a set as a whole")
    by_prompt = [group for group in groups if group.measure not in stored]
    by_set = [group for group in groups if group.measure in stored]
    means = prompt_means(scores, {group.measure: None for group in by_prompt})
    check_sets(scores, {group.measure for group in by_set})
    distances = {group.measure: Distances(stored[group.measure], scores) for group in by_set}
    strata = make_strata(stratum_keys(scores.prompts, scores.attributes, settings))
    resampling = Resampling(strata, settings.resamples, settings.seed)
    columns = {model: np.array([means[group.measure][model] for group in by_prompt]) for model in scores.models}
    compared = []
    for other in scores.models[1:]:
        figures = per_prompt_figures(by_prompt, columns["candidate"], columns[other], resampling, settings)
        figures += set_level_figures(by_set, distances, other, resampling, settings)
        compared.append(_in_order(figures, groups))
    return compared[0], compared[1] if scores.anchored else []


def _in_order(figures: Sequence[Figure], groups: Sequence[Group]) -> list[Figure]:
    found = {(figure.kind, figure.name): figure for figure in figures}
    return [found[group.kind, group.name] for group in groups]
