"""The scores that evaluate left, read and checked: whatever cannot carry a verdict is refused, with the reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.gate.resampling import Floats
from lineage.digests import LineageError, digest_path
from lineage.scores import COLUMNS, EVALUATION_FILE, MODELS, REFERENCES, SETS_FILE, TABLE_FILE, Sets, read_sets

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
    return Scores(table, attributes, seeds, sets, anchored="anchor" in facts), facts


def prompt_means(scores: Scores, measures: Collection[str]) -> dict[str, dict[str, Floats]]:
    """Measure -> model -> (P,): the mean over a prompt's seeds, prompts in order.

    Raises:
        UnusableScores: a score is missing, repeated, not a number, or of another prompt, seed or model.
    """
    table = scores.table
    lacking = [column for column in COLUMNS if column not in table.columns]
    if lacking:
        raise UnusableScores(f"the scores lack the columns {lacking}")
    absent = sorted(set(measures) - set(table["measure"]))
    if absent:
        raise UnusableScores(f"no scores for {', '.join(absent)}: every axis, slice and constraint needs its measure")
    strangers = sorted({str(model) for model in table["model"]} - set(scores.models))
    if strangers:
        raise UnusableScores(f"there are scores of {strangers[0]!r}; only {', '.join(scores.models)} are compared")
    table = table[table["measure"].isin(set(measures))]
    keys = list(zip(table["measure"], table["model"], table["prompt"], table["seed"], strict=True))
    found = dict(zip(keys, table["value"], strict=True))
    if len(found) < len(keys):
        measure, _, prompt, seed = Counter(keys).most_common(1)[0][0]
        raise UnusableScores(f"two scores of {measure} for prompt {prompt}, seed {seed}")
    pictures = _pictures(scores)
    for measure in measures:
        _check_pictures(found, measure, scores.models, pictures)
    return {
        measure: {model: _means(found, measure, model, pictures) for model in scores.models} for measure in measures
    }


def _pictures(scores: Scores) -> dict[str, list[int]]:
    if set(scores.seeds) != set(scores.attributes) or not all(scores.seeds.values()):
        raise UnusableScores(f"{EVALUATION_FILE} does not name the seeds of every prompt; evaluate anew")
    return {prompt: sorted(scores.seeds[prompt]) for prompt in scores.prompts}


def _check_pictures(
    found: Mapping[tuple[str, str, str, int], Any],
    measure: str,
    models: Sequence[str],
    pictures: Mapping[str, Sequence[int]],
) -> None:
    expected = {(model, prompt, seed) for model in models for prompt, seeds in pictures.items() for seed in seeds}
    different = expected ^ {key[1:] for key in found if key[0] == measure}
    if different:
        model, prompt, seed = min(different, key=repr)
        only = "lacks" if (model, prompt, seed) in expected else "has"
        raise UnusableScores(
            f"{measure}: candidate and incumbent are not scored on the prompts and seeds of the evaluation set, and "
            f"only on them: the {model} {only} prompt {prompt}, seed {seed} ({len(different)} such differences)"
        )


def _means(
    found: Mapping[tuple[str, str, str, int], Any], measure: str, model: str, pictures: Mapping[str, Sequence[int]]
) -> Floats:
    means = []
    for prompt, seeds in pictures.items():
        values = [_number(found[measure, model, prompt, seed], measure, model, prompt) for seed in seeds]
        means.append(math.fsum(values) / len(values))
    return np.array(means)


def _number(value: Any, measure: str, model: str, prompt: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise UnusableScores(f"{measure} of the {model} is {value} for prompt {prompt}")
    return number


def check_sets(scores: Scores, measures: Collection[str]) -> None:
    """Whether the features of set-level ``measures`` can be used.

    Raises:
        UnusableScores: features are missing, not numbers, too few, or of other prompts and seeds.
    """
    if scores.sets is None:
        return
    expected = {(prompt, seed) for prompt, seeds in _pictures(scores).items() for seed in seeds}
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
