"""The verdict: a pure function of a table of scores and the gate's settings.

For each axis and slice, the paired differences (candidate − incumbent) of the prompts are resampled within strata
(percentile bootstrap, B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13), a prompt always
with all its seeds. With one-sided α:

- **promote**: every axis and slice has its lower α bound above −margin, some axis has its lower α/3 bound above 0,
  and no axis has its upper α/3 bound below 0;
- **reject**: an axis or slice has its upper α bound below 0 and its lower α bound not above −margin;
- **invalid**: the scores cannot be used; never promoted;
- **hold**: anything else: no gain, a trade-off, or inconclusive.

Percentile bounds are monotone in the scores, which BCa and studentised ones are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from components.gate.settings import AXES, GateSettings

Decision = Literal["promote", "hold", "reject", "invalid"]
MODELS = ("candidate", "incumbent")
COLUMNS = ("prompt", "seed", "model", "measure", "value")


class UnusableScores(Exception):
    """The scores cannot carry a verdict; the message says which and why."""


class Figure(BaseModel):
    """What one axis or slice showed, in score units (higher is better)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    measure: str
    kind: Literal["axis", "slice"]
    prompts: int
    incumbent: float
    candidate: float
    difference: float
    lower: float
    """One-sided lower α bound of the difference."""
    upper: float
    lower_gain: float
    """One-sided lower α/3 bound: above 0 is a gain."""
    upper_loss: float
    """One-sided upper α/3 bound: below 0 is a loss."""
    margin: float
    detectable: float
    """The true difference that this sample size shows as above 0 in 80 % of evaluations."""

    @property
    def holds(self) -> bool:
        """Not worse by the margin or more."""
        return self.lower > -self.margin

    @property
    def harmed(self) -> bool:
        """Worse, and not shown to be within the margin."""
        return self.upper < 0 and not self.holds


class Ruling(BaseModel):
    """A decision with its reasons and every figure it rests on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Decision
    reasons: tuple[str, ...]
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class _Group:
    name: str
    measure: str
    kind: Literal["axis", "slice"]
    members: NDArray[np.bool_]
    margin: float


def decide(scores: pd.DataFrame, attributes: Mapping[str, Mapping[str, str | bool]], settings: GateSettings) -> Ruling:
    """Judge a candidate against the incumbent.

    Args:
        scores: one row a score, columns `COLUMNS`; higher is better in every measure.
        attributes: prompt id -> its attributes, for **every** prompt of the evaluation set. Prompts with equal
            attributes named by slices form a stratum.
    """
    try:
        means = _paired_means(scores, attributes, settings)
        groups = _groups(sorted(attributes), attributes, settings)
        figures = _figures(means, groups, _strata(attributes, settings), settings)
    except UnusableScores as error:
        return Ruling(decision="invalid", reasons=(str(error),))
    return _rule(figures)


def _rule(figures: Sequence[Figure]) -> Ruling:
    axes = [figure for figure in figures if figure.kind == "axis"]
    harmed = [figure for figure in figures if figure.harmed]
    unproven = [figure for figure in figures if not figure.holds and not figure.harmed]
    gains = [figure for figure in axes if figure.lower_gain > 0]
    losses = [figure for figure in axes if figure.upper_loss < 0]
    decision: Decision = "hold"
    if harmed:
        decision = "reject"
        reasons = [f"{_interval(f)}: worse, and not within the margin of {f.margin:g}" for f in harmed]
    elif unproven:
        reasons = [
            f"inconclusive: {_interval(f)}: a loss of {f.margin:g} cannot be ruled out with {f.prompts} prompts"
            for f in unproven
        ]
    elif losses:
        reasons = [f"trade-off: {_interval(f)}: within the margin of {f.margin:g}, but worse" for f in losses]
    elif not gains:
        reasons = ["no gain: every axis holds, none is better: " + "; ".join(_interval(f) for f in axes)]
    else:
        decision = "promote"
        reasons = [f"gain: {_interval(f)}" for f in gains]
        reasons.append(f"all {len(axes)} axes and {len(figures) - len(axes)} slices hold within their margins")
    return Ruling(decision=decision, reasons=tuple(reasons), figures=tuple(figures))


def _interval(figure: Figure) -> str:
    return (
        f"{figure.name} {figure.incumbent:.3f} -> {figure.candidate:.3f} "
        f"({figure.difference:+.3f}, interval {figure.lower:+.3f} to {figure.upper:+.3f})"
    )


def _paired_means(
    scores: pd.DataFrame, attributes: Mapping[str, Mapping[str, str | bool]], settings: GateSettings
) -> dict[str, NDArray[np.float64]]:
    """Measure -> (2, P): mean over seeds for candidate and incumbent, prompts in sorted order."""
    missing = [column for column in COLUMNS if column not in scores.columns]
    if missing:
        raise UnusableScores(f"the scores lack the columns {missing}")
    wanted = {*AXES, *(rule.measure for rule in settings.slices.values())}
    absent = sorted(wanted - set(scores["measure"]))
    if absent:
        raise UnusableScores(f"no scores for {', '.join(absent)}: every axis and slice needs its measure")
    unset = sorted(set(AXES) - set(settings.margins))
    if unset:
        raise UnusableScores(f"no margin for {', '.join(unset)}: set gate.margins for every axis")
    table = scores[scores["measure"].isin(wanted)]
    keys = ["measure", "model", "prompt", "seed"]
    if table.duplicated(keys).any():
        row = table[table.duplicated(keys)].iloc[0]
        raise UnusableScores(f"two scores of {row['measure']} for prompt {row['prompt']}, seed {row['seed']}")
    bad = table[~np.isfinite(table["value"].to_numpy(dtype=np.float64))]
    if len(bad):
        row = bad.iloc[0]
        raise UnusableScores(
            f"{row['measure']} of the {row['model']} is {row['value']} for prompt {row['prompt']} "
            f"({len(bad)} such scores)"
        )
    return {measure: _pair(table[table["measure"] == measure], measure, attributes) for measure in sorted(wanted)}


def _pair(table: pd.DataFrame, measure: str, attributes: Mapping[str, Mapping[str, str | bool]]) -> NDArray[np.float64]:
    samples = {model: set(zip(rows["prompt"], rows["seed"], strict=True)) for model, rows in table.groupby("model")}
    if set(samples) != set(MODELS) or samples["candidate"] != samples["incumbent"]:
        raise UnusableScores(f"{measure}: candidate and incumbent are not scored on the same prompts and seeds")
    scored = {prompt for prompt, _ in samples["candidate"]}
    if scored != set(attributes):
        raise UnusableScores(
            f"{measure}: {len(scored)} prompts are scored, the evaluation set has {len(attributes)}; "
            f"first difference: {sorted(scored ^ set(attributes))[0]}"
        )
    means = table.groupby(["model", "prompt"])["value"].mean()
    return np.stack([means[model].sort_index().to_numpy(dtype=np.float64) for model in MODELS])


def _groups(
    prompts: Sequence[str], attributes: Mapping[str, Mapping[str, str | bool]], settings: GateSettings
) -> list[_Group]:
    everyone = np.ones(len(prompts), dtype=np.bool_)
    groups = [_Group(axis, axis, "axis", everyone, settings.margins[axis]) for axis in AXES]
    for name, rule in sorted(settings.slices.items()):
        members = np.array([_belongs(attributes[prompt], rule.where) for prompt in prompts], dtype=np.bool_)
        groups.append(_Group(name, rule.measure, "slice", members, rule.margin))
    for group in groups:
        if group.members.sum() < settings.minimum_prompts:
            raise UnusableScores(
                f"{group.kind} {group.name!r} has {group.members.sum()} prompts, "
                f"fewer than minimum_prompts = {settings.minimum_prompts}"
            )
    return groups


def _belongs(attributes: Mapping[str, str | bool], where: Mapping[str, str | bool]) -> bool:
    return all(attributes.get(name) == value for name, value in where.items())


def _strata(attributes: Mapping[str, Mapping[str, str | bool]], settings: GateSettings) -> NDArray[np.int64]:
    """(P,): the stratum of each prompt in sorted order: equal values of every attribute that a slice names."""
    named = sorted({name for rule in settings.slices.values() for name in rule.where})
    keys = [tuple(str(attributes[prompt].get(name)) for name in named) for prompt in sorted(attributes)]
    return np.unique(np.array(["|".join(key) for key in keys]), return_inverse=True)[1].astype(np.int64)


def draw_counts(strata: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """(B, P): how often each resample draws each prompt, as many from a stratum as it has."""
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, len(strata)), dtype=np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        counts[:, members] = generator.multinomial(len(members), share, size=resamples)
    return counts


def _figures(
    means: Mapping[str, NDArray[np.float64]],
    groups: Sequence[_Group],
    strata: NDArray[np.int64],
    settings: GateSettings,
) -> list[Figure]:
    counts = draw_counts(strata, settings.resamples, settings.seed)
    tails = np.array([settings.alpha, 1 - settings.alpha, settings.alpha / 3, 1 - settings.alpha / 3])
    reach = NormalDist().inv_cdf(1 - settings.alpha) + NormalDist().inv_cdf(0.8)
    figures = []
    for group in groups:
        candidate, incumbent = means[group.measure][:, group.members]
        difference = candidate - incumbent
        weights = counts[:, group.members]
        totals = weights.sum(axis=1)
        if not totals.all():
            raise UnusableScores(f"{group.kind} {group.name!r} is too small to be resampled")
        resampled = _weighted_sums(weights, difference) / totals
        lower, upper, lower_gain, upper_loss = np.quantile(resampled, tails)
        figures.append(
            Figure(
                name=group.name,
                measure=group.measure,
                kind=group.kind,
                prompts=len(difference),
                incumbent=_mean(incumbent),
                candidate=_mean(candidate),
                difference=_mean(difference),
                lower=float(lower),
                upper=float(upper),
                lower_gain=float(lower_gain),
                upper_loss=float(upper_loss),
                margin=group.margin,
                detectable=reach * math.sqrt(_mean((resampled - _mean(resampled)) ** 2)),
            )
        )
    return figures


def _weighted_sums(weights: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``weights`` (B, n) times ``values`` (n,), the same on any machine.

    In integers, because a sum of floats depends on its order, and that on where the arrays lie in memory.
    """
    largest = float(np.abs(values).max()) * float(weights.sum(axis=1).max())
    scale = 2.0 ** (61 - math.frexp(largest)[1])
    return weights @ np.rint(values * scale).astype(np.int64) / scale


def _mean(values: NDArray[np.float64]) -> float:
    """The mean, correctly rounded: the same on any machine."""
    return math.fsum(values) / len(values)
