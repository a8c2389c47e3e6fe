"""Selection: which of a run's weights become the candidate.

**Points** are the averaged weights after some of the run's steps, and mixes of the last with the base model,
base + share (last - base), an adapter's likewise. Each draws the prompts of the selection set, and the scorers that
will judge the candidate score it. See `RULE`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from components.evaluate.evaluation_set import EvaluationError, read_evaluation_set
from components.evaluate.scoring import FeatureScorer, PictureScorer, load_scorers, measures, score_pictures
from components.evaluate.settings import DrawingSettings, ScorerSettings
from lineage.progress import track
from training.errors import TrainingError
from training.families.drawing import Drawer
from training.families.family import weights_in
from training.settings import AXES, TrainingSettings
from training.train import lora
from training.train.export import export_candidate
from training.train.job import mark_name
from training.train.samples import take_weights

RULE = (
    "the largest product over the axes of gains, gain = mean - base model's mean + margin, among the points where all "
    "gains are above 0; of equals the later; where there is no such point, the last step"
)
Means = Mapping[str, float]
"""Axis -> mean score over the selection set."""


class Point(NamedTuple):
    """Weights that can be chosen; the later is the greater."""

    step: int
    share: float
    """Of the change that training has made until ``step``."""

    @property
    def name(self) -> str:
        """In words."""
        return f"step {self.step}" if self.share == 1 else f"{100 * self.share:g} % of step {self.step}"


def points(settings: TrainingSettings) -> list[Point]:
    """All that are compared."""
    mixes = (Point(settings.steps, share) for share in settings.selection.mixes)
    return sorted({*(Point(step, 1.0) for step in settings.marked), *mixes})


def product(means: Means, base: Means, margins: Mapping[str, float]) -> float:
    """The product of the gains; 0 where one of them is not above 0."""
    gains = [means[axis] - base[axis] + margins[axis] for axis in AXES]
    return math.prod(gains) if min(gains) > 0 else 0.0


def choose(products: Mapping[Point, float]) -> Point:
    """The point that `RULE` chooses."""
    return max(products, key=lambda point: (products[point], point))  # where all are 0, that is the last step


def weights_at(settings: TrainingSettings, marks: Path, point: Point) -> dict[str, Tensor]:
    """What is trained, at ``point``, in fp32.

    Raises:
        TrainingError: it is not finite.
    """
    weights = load_file(marks / mark_name(point.step))
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise TrainingError(f"{point.name} has weights that are not finite; lower the learning rate and train again")
    if point.share == 1:
        return weights
    if settings.adapter:
        return {name: point.share * t if name.endswith(lora.UP) else t for name, t in weights.items()}
    for name, stream in weights_in(settings.base_model / "transformer"):
        if name in weights:
            weights[name] = torch.lerp(stream.get_tensor(name).float(), weights[name], point.share)
    return weights


class Selection:
    """A selection set, and who scores on it.

    Raises:
        EvaluationError: the set is malformed, a scorer does not load, or an axis has none that judges single pictures.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._set = read_evaluation_set(str(settings.selection.selection_set))
        scorers = load_scorers([ScorerSettings.model_validate(asked) for asked in settings.selection.scorers])
        decided = measures(scorers)
        judges = (s for s in scorers if isinstance(s, PictureScorer) and not isinstance(s, FeatureScorer))
        self._judges = {s.axis: s for s in judges if decided[s.name] == s.axis and s.axis in AXES}
        if lacking := [axis for axis in AXES if axis not in self._judges]:
            raise EvaluationError(
                f"no scorer of training.selection judges single pictures for {', '.join(lacking)}; put one that does "
                "first for each axis"
            )

    def select(self, marks: Path, candidate: Path) -> dict[str, Any]:
        """Compare the points in the folder ``marks``, write the chosen one to ``candidate``, and tell how it came.

        Raises:
            TrainingError: weights are not finite, or draw what is not.
            EvaluationError: a scorer fails, or gives what is not finite.
        """
        began, settings = time.perf_counter(), self._settings
        base, compared = self._compare(marks)
        products = {point: product(means, base, settings.selection.margins) for point, means in compared.items()}
        chosen = choose(products)
        export_candidate(settings.base_model, weights_at(settings, marks, chosen), candidate, settings.adapter)
        told = ", ".join(f"{axis} {compared[chosen][axis]:.3f} ({base[axis]:.3f})" for axis in AXES)
        why = "" if products[chosen] else "nothing is within the margins: "
        print(f"chosen: {why}{chosen.name} of {settings.steps}; in parentheses the base model: {told}", flush=True)
        return {
            "rule": RULE,
            "selection_set": self._set.digest,
            "scorers": {axis: {"name": s.name, "digest": s.digest} for axis, s in self._judges.items()},
            "margins": {axis: settings.selection.margins[axis] for axis in AXES},
            "base_model": base,
            "points": [{"name": point.name, **compared[point], "product": products[point]} for point in compared],
            "chosen": chosen.name,
            "within_margins": products[chosen] > 0,
            "seconds": time.perf_counter() - began,
        }

    def _compare(self, marks: Path) -> tuple[Means, dict[Point, Means]]:
        """The base model's means, and those of each point."""
        settings, asked = self._settings, points(self._settings)
        drawing = DrawingSettings.model_validate(settings.selection.drawing)
        drawer = Drawer(settings.base_model, **drawing.model_dump())
        base, compared = self._score(drawer, "the base model"), {}
        pictures = len(self._set.samples)
        for point in track(asked, "comparing weights", len(asked) * pictures, weight=pictures):
            take_weights(drawer.pipeline.transformer, settings, weights_at(settings, marks, point))
            compared[point] = self._score(drawer, point.name)
        return base, compared

    def _score(self, drawer: Drawer, who: str) -> Means:
        """Mean scores of the pictures that ``drawer`` draws."""
        samples, size = self._set.samples, self._settings.selection.batch_size
        sampling, pictures = self._set.description.sampling.model_dump(), list[Image.Image]()
        for start in range(0, len(samples), size):
            prompts, seeds = zip(*samples[start : start + size], strict=True)
            try:
                pictures += drawer.draw([prompt.text for prompt in prompts], seeds, sampling)
            except TrainingError as error:
                raise TrainingError(f"{who}: {error}; lower the learning rate and train again") from error
        means = {}
        for axis, scorer in self._judges.items():
            given = score_pictures(scorer, axis, pictures, samples).get(axis)
            if given is None or not np.isfinite(given).all():
                raise EvaluationError(f"scorer {scorer.name} gave no finite {axis} for each picture of {who}; mend it")
            means[axis] = float(given.mean())
        return means


def check_selection(settings: TrainingSettings) -> None:
    """Find what would keep `Selection` from choosing, before training; nothing is left in memory beside that."""
    Selection(settings)
    torch.cuda.empty_cache()
