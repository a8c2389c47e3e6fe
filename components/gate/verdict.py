"""The verdict: a pure function of the scores, the gate's settings and how many decisions the evaluation set has served.

A decision spends alpha / life of the set's error; that is the level of its bounds (`components.gate.resampling`):

- **reject**: a constraint's limit is shown to be broken, or an axis, slice or constraint is shown to be worse and not
  shown to be within its margin, against the incumbent or against the anchor;
- **promote**: every axis, slice and constraint is shown to be within its margin and limit, against both; some axis is
  shown to be better, and no axis or slice to be worse, against the incumbent; sealed prompts, where there are any and
  which nothing else looks at, say the same; and the set has not served all decisions that it was meant for;
- **invalid**: the scores cannot be used; never promoted;
- **hold**: anything else: no gain, a trade-off, or inconclusive.

Bounds are monotone in the scores. They are exchanged with their signs where the models are, and a gain is then a loss:
so of two models at most one is promoted over the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from components.gate.distances import Distances
from components.gate.figures import Figure, Group, make_groups, per_prompt_figures, set_level_figures
from components.gate.resampling import Resampling
from components.gate.scores import Scores, UnusableScores, check_sets, prompt_means
from components.gate.settings import RANGES, GateSettings, axis_of, missing_axes
from lineage.figures import cells
from lineage.frozen import Frozen

Decision = Literal["promote", "hold", "reject", "invalid"]


class Ruling(Frozen):
    """A decision with its reasons and every figure it rests on."""

    decision: Decision
    reasons: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    """Against the incumbent."""
    anchor: tuple[Figure, ...] = ()
    """Against the anchor, where that is another one."""
    sealed: tuple[Figure, ...] = ()
    """Against the incumbent on the sealed prompts, where these confirmed a promotion."""


def decide(scores: Scores, settings: GateSettings, decision: int = 1) -> Ruling:
    """Judge a candidate against the incumbent, and against the anchor where it was scored.

    Args:
        decision: which one on this evaluation set this is, from 1 on.
    """
    try:
        ruling = rule(*compare(scores, settings, scores.open, decision))
        if ruling.decision != "promote":
            return ruling
        if decision > settings.life:
            spent = f"this is decision {decision} on an evaluation set that was meant for {settings.life}: it can show"
            told = f"{spent} nothing any more, and would have said: {ruling.decision}; make a new set"
            return ruling.model_copy(update={"decision": "hold", "reasons": (told, *ruling.reasons)})
        if not scores.sealed:
            return ruling
        sealed = rule(*compare(scores, settings, sorted(scores.sealed), decision))
    except UnusableScores as error:
        return Ruling(decision="invalid", reasons=(str(error),))
    if sealed.decision != "promote":
        # No figure of them: the next candidate could be made for it.
        told = f"the {len(scores.sealed)} sealed prompts do not confirm it"
        return ruling.model_copy(update={"decision": "hold", "reasons": (told, *ruling.reasons)})
    told = f"confirmed on {len(scores.sealed)} sealed prompts"
    return ruling.model_copy(update={"reasons": (*ruling.reasons, told), "sealed": sealed.figures})


def rule(figures: Sequence[Figure], anchor: Sequence[Figure] = ()) -> Ruling:
    """The decision that figures lead to."""
    failed = [_broken(f) for f in figures if f.over_limit]
    failed += [_harmed(f) for f in figures if f.worse and not f.within and not f.over_limit]
    failed += [f"{AGAINST_ANCHOR}: {_harmed(f)}" for f in anchor if f.worse and not f.within]
    unproven = [_unproven(f) for f in figures if not f.holds]
    unproven += [f"{AGAINST_ANCHOR}: {_unproven(f)}" for f in anchor if not f.holds]
    axes = [figure for figure in figures if figure.kind == "axis"]
    gains = [f"gain: {_interval(f)}" for f in axes if f.lower_gain > 0]
    losses = [
        f"trade-off: {_interval(f)}: within the margin of {f.margin:g}, but worse"
        for f in figures
        if f.worse and f.kind != "constraint"
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
        decision, reasons = "promote", [*gains, held + (", also against the anchor" if anchor else "")]
    return Ruling(decision=decision, reasons=tuple(reasons), figures=tuple(figures), anchor=tuple(anchor))


AGAINST_ANCHOR = "against the anchor"


def _harmed(figure: Figure) -> str:
    what = "hard constraint " if figure.kind == "constraint" else ""
    return f"{what}{_interval(figure)}: worse, and not within the margin of {figure.margin:g}"


def _broken(figure: Figure) -> str:
    return f"hard constraint {figure.name}: a share of {-figure.candidate:.3f} is over the limit of {figure.limit:g}"


def _unproven(figure: Figure) -> str:
    if figure.within:
        return (
            f"{figure.name}: a share of {-figure.candidate:.3f}: one over the limit of {figure.limit:g} cannot be "
            f"ruled out with {figure.prompts} prompts"
        )
    return f"{_interval(figure)}: a loss of {figure.margin:g} cannot be ruled out with {figure.prompts} prompts"


def _interval(figure: Figure) -> str:
    name, incumbent, candidate, difference, interval, _ = cells(figure.model_dump())
    return f"{name} {incumbent} -> {candidate} ({difference}, interval {interval})"


def compare(
    scores: Scores, settings: GateSettings, prompts: Sequence[str], decision: int = 1
) -> tuple[list[Figure], list[Figure]]:
    """The figures of ``prompts`` against the incumbent, and against the anchor.

    Raises:
        UnusableScores: they cannot carry a verdict.
    """
    if scores.unusable:
        raise UnusableScores(scores.unusable)
    if unset := missing_axes(settings.margins):
        raise UnusableScores(f"no margin for {', '.join(unset)}: set gate.margins for every axis")
    groups = make_groups(scores, prompts, settings)
    by_prompt = [group for group in groups if not scores.is_set(group.measure)]
    by_set = [group for group in groups if scores.is_set(group.measure)]
    for group in by_set:
        if group.kind != "axis":
            raise UnusableScores(f"{group.kind} {group.name!r}: {group.measure} judges a set as a whole")
    declared = {m for g in groups for m in (g.measure, axis_of(g.measure)) if m in settings.ranges or m in RANGES}
    ranges = {group.measure: group.range for group in by_prompt}
    means = prompt_means(scores, prompts, ranges, declared)
    check_sets(scores, {group.measure for group in by_set})
    measures = scores.sets.measures if scores.sets else ()
    distances = {one.measure: Distances(one, scores, prompts) for one in measures if one.measure in settings.margins}
    resampling = Resampling(len(prompts), settings.resamples, settings.seed + decision)
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
