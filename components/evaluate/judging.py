"""Judge every model's samples with every scorer, and lay the findings down as `lineage.scores` says."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from components.evaluate.distances import DISTANCES, nearest, spread, usual_distance, vendi
from components.evaluate.evaluation_set import EvaluationError, EvaluationSet, open_rgb
from components.evaluate.scoring import FeatureScorer, PictureScorer, Scorer, measures, rows, score_pictures
from components.evaluate.settings import EvaluationSettings
from lineage.pictures import manifest_rows, read_picture, trained_on
from lineage.scores import COLUMNS, DIVERSITY, REFERENCES, Kernel, SetMeasure, write_sets
from training.settings import teachers
from training.teach.leakage import ALIKE, find_leakage, likeness, probe_pictures, refusal, teacher_features

MANIFEST = "manifest.parquet"
MEMORISATION = "memorisation"
DECODED = 512
"""Training pictures decoded at once."""
KERNELS = {"kid": Kernel(name="polynomial"), "cmmd": Kernel(name="rbf", sigma=10.0, scale=1000.0)}
"""The metrics that a gate can decide by; others are only reported."""


class Judge:
    """Scores one model after another on the same evaluation set.

    Args:
        validated: the folder with the manifest of the training pictures, for memorisation.

    Raises:
        EvaluationError: the references or training pictures that a scorer needs are not there.
    """

    def __init__(self, scorers: Sequence[Scorer], evaluation_set: EvaluationSet, validated: Path | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._scorers, self._set, self._measures = scorers, evaluation_set, measures(scorers)
        self._features: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._reported: dict[str, dict[str, float]] = {}
        self._memorisation: dict[str, Any] = {}
        for scorer in scorers:
            if isinstance(scorer, FeatureScorer) and scorer.metric == MEMORISATION:
                self._features[scorer.name] = self._trained(scorer, validated)
            elif isinstance(scorer, FeatureScorer) and scorer.metric == DIVERSITY:
                if not any(len(prompt.seeds) > 1 for prompt in evaluation_set.prompts):
                    raise EvaluationError(f"{scorer.name} needs prompts with two seeds, and the set has none")
            elif isinstance(scorer, FeatureScorer) and scorer.metric in DISTANCES:
                pictures = evaluation_set.references()
                if len(pictures) < 2:
                    raise EvaluationError(f"{scorer.name} needs the evaluation set's references, and there are none")
                self._features[scorer.name] = {REFERENCES: scorer.features(pictures)}
            elif not isinstance(scorer, PictureScorer):
                raise EvaluationError(f"scorer {scorer.name} neither scores pictures nor names a metric it gives")

    def describe(self) -> list[dict[str, Any]]:
        """What ``evaluation.json`` says of each scorer."""
        names = ("name", "axis", "higher_is_better", "digest", "backbone", "metric", "ran")
        return [
            {name: getattr(scorer, name) for name in names if hasattr(scorer, name)}
            | {"measure": self._measures[scorer.name]}
            for scorer in self._scorers
        ]

    def check_leakage(self, settings: EvaluationSettings, training: Mapping[str, Any]) -> dict[str, Any]:
        """What was found of the training's teachers in the scorers.

        Raises:
            EvaluationError: something was found, and the settings do not allow it.
        """
        found = find_leakage([(s.scorer, s.weights) for s in settings.scorers], training)
        probes = probe_pictures()
        for key, teacher in teachers(training).items():
            known = teacher_features(teacher, probes)
            for scorer in self._scorers:
                seen = scorer.features(probes) if hasattr(scorer, "features") else None
                if seen is not None and max(likeness(seen, features) for features in known) >= ALIKE:
                    found.append(f"{scorer.name} sees what training.{key} sees in {len(probes)} probe pictures")
        if found and not settings.allow_teacher_leakage:
            raise EvaluationError(refusal(found))
        return {"allowed": settings.allow_teacher_leakage, "found": found}

    def score(self, who: str, files: Sequence[Path]) -> None:
        """Score one model's pictures, in the order of the evaluation set's samples.

        Raises:
            EvaluationError: a scorer fails; the message names the picture where one alone is to blame.
        """
        images, samples = [open_rgb(file) for file in files], self._set.samples
        for scorer in self._scorers:
            measure = self._measures[scorer.name]
            if isinstance(scorer, FeatureScorer):
                self._compare(scorer, measure, who, images)
            elif isinstance(scorer, PictureScorer):
                self.rows += rows(score_pictures(scorer, measure, images, samples), samples, who)

    def finish(self, target: Path) -> dict[str, Any]:
        """Write what set-level measures need; gives what ``evaluation.json`` says of the scorers."""
        facts: dict[str, Any] = {"scorers": self.describe(), "reported": self._reported}
        sets = [
            SetMeasure(
                self._measures[scorer.name],
                KERNELS[scorer.metric],
                {who: values.astype(np.float32) for who, values in self._features[scorer.name].items()},
            )
            for scorer in self._scorers
            if isinstance(scorer, FeatureScorer) and scorer.metric in KERNELS
        ]
        if sets:
            facts["sets"] = write_sets(target, [(prompt.id, seed) for prompt, seed in self._set.samples], sets)
        facts["agreement"] = agreement(self.rows, set(self._measures.values()))
        return {**facts, **({MEMORISATION: self._memorisation} if self._memorisation else {})}

    def _compare(self, scorer: FeatureScorer, measure: str, who: str, images: Sequence[Image.Image]) -> None:
        try:
            seen = scorer.features(images)
        except Exception as error:  # whatever a scorer raises, no score of it may be believed
            raise EvaluationError(f"scorer {scorer.name} failed on the {who}'s pictures: {error!r}") from error
        if len(seen) != len(images) or not np.isfinite(seen).all():
            raise EvaluationError(f"scorer {scorer.name} gave no finite features for each of {len(images)} pictures")
        samples = self._set.samples
        if scorer.metric == MEMORISATION:
            copied = nearest(seen, self._features[scorer.name]["training"]) < self._memorisation["distance"]
            self._memorisation[who] = float(copied.mean())
            self.rows += rows({measure: -copied.astype(np.float64)}, samples, who)
        elif scorer.metric == DIVERSITY:
            places = {prompt.id: place for place, prompt in enumerate(self._set.prompts)}
            apart = spread(seen, [places[prompt.id] for prompt, _ in samples])
            several = [place for place, (prompt, _) in enumerate(samples) if len(prompt.seeds) > 1]
            self.rows += rows({measure: apart[several]}, [samples[place] for place in several], who)
            self._reported.setdefault("vendi", {})[who] = vendi(seen)
        else:
            known = self._features[scorer.name]
            known[who] = seen
            self._reported.setdefault(scorer.name, {})[who] = DISTANCES[scorer.metric](seen, known[REFERENCES])

    def _trained(self, scorer: FeatureScorer, validated: Path | None) -> dict[str, NDArray[np.float64]]:
        """Features of all training pictures; notes how near to them pictures lie that nobody trained on."""
        heldout = self._set.heldout()
        if not heldout or validated is None:
            lacking = "the pictures that the candidate was trained on" if heldout else "a heldout folder in the set"
            raise EvaluationError(f"scorer {scorer.name} needs {lacking}")
        trained = [row for row in manifest_rows(validated / MANIFEST) if trained_on(row)]
        parts = [trained[start : start + DECODED] for start in range(0, len(trained), DECODED)]
        training = np.concatenate([scorer.features([_trained_on(row) for row in part]) for part in parts])
        try:
            usual = usual_distance(scorer.features([open_rgb(path) for path, _ in heldout]), training)
        except ValueError as error:
            raise EvaluationError(f"scorer {scorer.name}: {error}") from error
        self._memorisation = {"training": len(trained), "heldout": len(heldout), "distance": usual}
        return {"training": training}


def agreement(rows: Sequence[Mapping[str, Any]], measures: Collection[str]) -> dict[str, float]:
    """Pair of measures -> Spearman's correlation of their differences between candidate and incumbent, by picture."""
    table = pd.DataFrame([row for row in rows if row["measure"] in measures], columns=list(COLUMNS))
    by_model = table.set_index(["model", "prompt", "seed", "measure"])["value"].unstack("measure")
    if not {"candidate", "incumbent"} <= set(table["model"]):
        return {}
    moved = pd.DataFrame(by_model.loc["candidate"] - by_model.loc["incumbent"])
    found = {
        f"{one} and {other}": round(float(moved[one].corr(moved[other], "spearman")), 3)
        for one, other in combinations(moved.columns, 2)
    }
    return {pair: value for pair, value in found.items() if not math.isnan(value)}


def _trained_on(row: Mapping[str, Any]) -> Image.Image:
    """A training picture, as validated.

    Raises:
        LineageError: it is gone, was changed since, or is no picture.
    """
    try:
        return open_rgb(io.BytesIO(read_picture(row)))
    except EvaluationError as error:
        raise EvaluationError(f"{row['file_name']} at {row['uri']}: {error}") from error
