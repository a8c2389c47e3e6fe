"""The scores that evaluate left, read and checked: whatever cannot carry a verdict is refused, with the reason."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.gate.resampling import Floats
from components.gate.settings import axis_of
from lineage.digests import LineageError, digest_path
from lineage.scores import (
    COLUMNS,
    DIVERSITY,
    EVALUATION_FILE,
    MODELS,
    REFERENCES,
    SETS_FILE,
    TABLE_FILE,
    Sets,
    read_sets,
)

LARGEST = 1e150
"""Beyond it, sums of squares would not be finite."""


class UnusableScores(Exception):
    """The scores cannot carry a verdict; the message says which and why."""


@dataclass(frozen=True)
class Scores:
    """What a verdict is given on."""

    table: pd.DataFrame
    """One row a score, columns `COLUMNS`; higher is better in every measure."""
    attributes: Mapping[str, Mapping[str, str | bool]]
    """Prompt -> its attributes, for **every** prompt of the evaluation set."""
    seeds: Mapping[str, Sequence[int]]
    """Prompt -> the seeds it is drawn with."""
    sealed: frozenset[str] = frozenset()
    """The prompts that only confirm what the others would promote."""
    sets: Sets | None = None
    anchored: bool = False
    """Whether the anchor was to be scored too."""
    unusable: str = ""
    """Why there are no scores, in evaluate's words; empty where there are."""

    @property
    def models(self) -> tuple[str, ...]:
        """Who must be scored."""
        return MODELS if self.anchored else MODELS[:2]

    @property
    def prompts(self) -> list[str]:
        """Every prompt, in order."""
        return sorted(self.attributes)

    @property
    def open(self) -> list[str]:
        """The prompts that are not sealed, in order."""
        return [prompt for prompt in self.prompts if prompt not in self.sealed]

    def is_set(self, measure: str) -> bool:
        """Whether a measure judges a model's pictures as a set."""
        return self.sets is not None and any(one.measure == measure for one in self.sets.measures)

    def is_scored(self, prompt: str, measure: str) -> bool:
        """Whether a measure scores a prompt: diversity does where there are two pictures at least."""
        return axis_of(measure) != DIVERSITY or len(self.seeds[prompt]) > 1


def read_scores(folder: Path) -> tuple[Scores, dict[str, Any]]:
    """The scores in a folder that evaluate wrote, and the content of its ``evaluation.json``.

    Raises:
        LineageError: a file is missing or malformed, or is not the one that ``evaluation.json`` names.
    """
    try:
        facts = json.loads((folder / EVALUATION_FILE).read_bytes())
        pinned = facts["evaluation_set"]
        attributes, seeds, unusable = pinned["prompts"], pinned.get("seeds", {}), facts.get("unusable", "")
        if unusable:
            return Scores(pd.DataFrame(columns=list(COLUMNS)), attributes, seeds, unusable=str(unusable)), facts
        for name, digest in ((TABLE_FILE, facts["scores"]), (SETS_FILE, facts.get("sets"))):
            if digest is not None and digest_path(folder / name) != digest:
                raise LineageError(f"{folder / name} is not the one that {EVALUATION_FILE} names; evaluate anew")
        table = pd.read_parquet(folder / TABLE_FILE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LineageError(f"the scores in {folder} cannot be read: {error!r}; evaluate anew") from error
    sets = read_sets(folder / SETS_FILE) if "sets" in facts else None
    sealed = frozenset(pinned.get("sealed", ()))
    return Scores(table, attributes, seeds, sealed, sets, anchored="anchor" in facts), facts


def prompt_means(
    scores: Scores, prompts: Sequence[str], ranges: Mapping[str, tuple[float, float]], declared: set[str]
) -> dict[str, dict[str, Floats]]:
    """Measure -> model -> (P,): the mean over a prompt's seeds of the scores, each held to the measure's range.

    A prompt that a measure does not score has 0.

    Args:
        ranges: measure -> its lowest and highest score.
        declared: the measures and axes whose range somebody declared; others' scores must lie within it.

    Raises:
        UnusableScores: a score is missing, repeated, not a number, beyond a range that nobody declared, or of another
            prompt, seed or model.
    """
    table = scores.table
    if lacking := [column for column in COLUMNS if column not in table.columns]:
        raise UnusableScores(f"the scores lack the columns {lacking}")
    if absent := sorted(set(ranges) - set(table["measure"])):
        raise UnusableScores(f"no scores for {', '.join(absent)}: every axis, slice and constraint needs its measure")
    if strangers := sorted({str(model) for model in table["model"]} - set(scores.models)):
        raise UnusableScores(f"there are scores of {strangers[0]!r}; only {', '.join(scores.models)} are compared")
    table = table[table["measure"].isin(set(ranges))]
    if (again := table.duplicated(KEYS)).any():
        measure, _, prompt, seed = table[again].iloc[0][KEYS]
        raise UnusableScores(f"two scores of {measure} for prompt {prompt}, seed {seed}")
    found, expected = table.set_index(KEYS)["value"], _expected(scores, ranges)
    if different := set(expected) ^ set(found.index):
        measure, model, prompt, seed = first = min(different, key=repr)
        raise UnusableScores(
            f"{measure}: candidate and incumbent are not scored on the prompts and seeds of the evaluation set, and "
            f"only on them: the {model} {'lacks' if first in expected else 'has'} prompt {prompt}, seed {seed} "
            f"({len(different)} such differences)"
        )
    values = pd.to_numeric(found, errors="coerce").reindex(expected)
    for key in values.index[~(values.abs() <= LARGEST)][:1]:
        raise UnusableScores(f"{key[0]} of the {key[1]} is {found[key]} for prompt {key[2]}")
    means: dict[str, dict[str, Floats]] = {}
    for measure, (low, high) in ranges.items():
        for model in scores.models:
            of = values.xs((measure, model), level=("measure", "model"))
            if not declared & {measure, axis_of(measure)} and not of.between(low, high).all():
                raise UnusableScores(
                    f"{measure} of the {model} is between {of.min():g} and {of.max():g}, and gate.ranges does not say "
                    "between what its scores lie"
                )
            # In the order of seeds, and summed with compensation: the same on any machine.
            held = of.clip(low, high).groupby(level="prompt").mean().reindex(list(prompts), fill_value=0.0)
            means.setdefault(measure, {})[model] = held.to_numpy(np.float64)
    return means


KEYS = ["measure", "model", "prompt", "seed"]


def _expected(scores: Scores, measures: Collection[str]) -> pd.MultiIndex:
    pictures = _pictures(scores)
    keys = [
        (measure, model, prompt, seed)
        for measure in measures
        for model in scores.models
        for prompt, seed in pictures
        if scores.is_scored(prompt, measure)
    ]
    return pd.MultiIndex.from_tuples(keys, names=KEYS)


def _pictures(scores: Scores) -> list[tuple[str, int]]:
    """Prompt and seed of each picture, in order."""
    if set(scores.seeds) != set(scores.attributes) or not all(scores.seeds.values()):
        raise UnusableScores(f"{EVALUATION_FILE} does not name the seeds of every prompt; evaluate anew")
    return [(prompt, seed) for prompt in scores.prompts for seed in sorted(scores.seeds[prompt])]


def check_sets(scores: Scores, measures: Collection[str]) -> None:
    """Whether the features of set-level ``measures`` can be used.

    Raises:
        UnusableScores: features are missing, not numbers, too few, or of other prompts and seeds.
    """
    if scores.sets is None:
        return
    expected = set(_pictures(scores))
    if set(scores.sets.rows) != expected or len(scores.sets.rows) != len(expected):
        raise UnusableScores("the features are not of the prompts and seeds of the evaluation set, each once")
    for measure in (measure for measure in scores.sets.measures if measure.measure in measures):
        if measure.kernel.name == "rbf" and not measure.kernel.sigma > 0:
            raise UnusableScores(f"{measure.measure}: an rbf kernel needs a sigma above 0")
        for who in (*scores.models, REFERENCES):
            features = measure.features.get(who)
            if features is None or features.ndim != 2 or not features.size:
                raise UnusableScores(f"{measure.measure}: there are no features of the {who}")
            if not np.isfinite(features).all():
                raise UnusableScores(f"{measure.measure}: features of the {who} are not finite")
            if who != REFERENCES and len(features) != len(expected):
                raise UnusableScores(
                    f"{measure.measure}: {len(features)} features of the {who} for {len(expected)} rows"
                )
        if len({features.shape[1] for features in measure.features.values()}) != 1:
            raise UnusableScores(f"{measure.measure}: the models' features differ in their number of dimensions")
