"""Score pictures with every configured scorer.

A scorer is a class in the entry-point group ``triptych.scorers``, made with its weights and options. It judges one
picture at a time (`PictureScorer`), or gives features that a metric compares with other pictures (`FeatureScorer`).
The first scorer of an axis decides it: its measure is the axis. A later one is reported beside it, as ``axis/name``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.evaluate.evaluation_set import EvaluationError, Prompt
from components.evaluate.settings import ScorerSettings

GROUP = "triptych.scorers"


class Scorer(Protocol):
    """Judges pictures on one axis; deterministic on given pictures."""

    name: str
    axis: str
    higher_is_better: bool
    backbone: str
    """The network it looks with, in words."""
    digest: str
    """Of everything that decides its scores."""


@runtime_checkable
class PictureScorer(Scorer, Protocol):
    """Judges one picture at a time."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Mapping[str, NDArray[np.float64]]:
        """Measure -> (N,) for N pictures (RGB) and their prompts: the axis, and any parts as ``axis/part``."""
        ...


@runtime_checkable
class FeatureScorer(Scorer, Protocol):
    """Gives features, (N, d), that ``metric`` compares: ``kid``, ``cmmd``, ``frechet``, ``memorisation``,
    ``diversity``.

    A `PictureScorer` may give features too: those of its backbone, by which leakage is found.
    """

    metric: str

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(N, d), one row a picture."""
        ...


def load_scorers(settings: Sequence[ScorerSettings]) -> list[Scorer]:
    """Find scorers by name and load their weights.

    Raises:
        EvaluationError: no installed package offers one, its weights do not load, or two have one name.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    scorers: list[Scorer] = []
    for asked in settings:
        if asked.scorer not in found:
            raise EvaluationError(f"no scorer {asked.scorer!r} is installed; there are: {', '.join(sorted(found))}")
        try:
            scorers.append(found[asked.scorer].load()(asked.weights, **asked.options))
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise EvaluationError(f"scorer {asked.scorer!r} does not load {asked.weights}: {error}") from error
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names):
        raise EvaluationError(f"two scorers have one name: {', '.join(sorted(names))}")
    return scorers


def measures(scorers: Sequence[Scorer]) -> dict[str, str]:
    """Scorer's name -> the measure that it decides: its axis, or ``axis/name`` where an earlier one has that."""
    first: dict[str, str] = {}
    for scorer in scorers:
        first.setdefault(scorer.axis, scorer.name)
    return {s.name: s.axis if first[s.axis] == s.name else f"{s.axis}/{s.name}" for s in scorers}


def score_pictures(
    scorer: PictureScorer, measure: str, images: Sequence[Image.Image], samples: Sequence[tuple[Prompt, int]]
) -> dict[str, NDArray[np.float64]]:
    """Measure -> (N,), every value with higher as better.

    Raises:
        EvaluationError: the scorer raised, or gave another number of scores than there are pictures.
    """
    prompts = [prompt for prompt, _ in samples]
    try:
        given = scorer.score(images, prompts)
    except EvaluationError:
        raise
    except Exception as error:  # whatever a scorer raises, no score of it may be believed
        raise EvaluationError(_blame(scorer, images, samples, error)) from error
    sign = 1.0 if scorer.higher_is_better else -1.0
    scores = {}
    for name, values in given.items():
        if len(values) != len(samples):
            raise EvaluationError(f"scorer {scorer.name} gave {len(values)} scores for {len(samples)} pictures")
        scores[measure + name.removeprefix(scorer.axis)] = sign * np.asarray(values, dtype=np.float64)
    return scores


def _blame(
    scorer: PictureScorer, images: Sequence[Image.Image], samples: Sequence[tuple[Prompt, int]], error: Exception
) -> str:
    """The failure in words, with the first picture that alone makes the scorer fail."""
    for image, (prompt, seed) in zip(images, samples, strict=True):
        try:
            scorer.score([image], [prompt])
        except Exception as alone:  # as above
            return f"scorer {scorer.name} failed on prompt {prompt.id}, seed {seed}: {alone!r}"
    return f"scorer {scorer.name} failed: {error!r}"


def rows(
    scores: Mapping[str, NDArray[np.float64]], samples: Sequence[tuple[Prompt, int]], model: str
) -> list[dict[str, Any]]:
    """One row a score: ``prompt, seed, model, measure, value``."""
    return [
        {"prompt": prompt.id, "seed": seed, "model": model, "measure": measure, "value": float(value)}
        for measure, values in scores.items()
        for (prompt, seed), value in zip(samples, values, strict=True)
    ]
