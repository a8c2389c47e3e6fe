"""Score pictures with every configured scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

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
    digest: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Mapping[str, NDArray[np.float64]]:
        """Measure -> (N,) for N pictures (RGB) and their prompts: the axis, and any parts as ``axis/part``."""
        ...


def load_scorer(settings: ScorerSettings) -> Scorer:
    """Find a scorer by name and load its weights.

    Raises:
        EvaluationError: no installed package offers it, or its weights do not load.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if settings.scorer not in found:
        raise EvaluationError(f"no scorer {settings.scorer!r} is installed; there are: {', '.join(sorted(found))}")
    try:
        return cast(Scorer, found[settings.scorer].load()(settings.weights))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError(f"scorer {settings.scorer!r} does not load {settings.weights}: {error}") from error


def score_pictures(
    scorers: Sequence[Scorer], files: Sequence[Path], samples: Sequence[tuple[Prompt, int]], model: str
) -> list[dict[str, Any]]:
    """One row a score (``prompt, seed, model, measure, value``); every value with higher as better.

    Raises:
        EvaluationError: a scorer gives another number of scores than there are pictures.
    """
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
    prompts = [prompt for prompt, _ in samples]
    rows: list[dict[str, Any]] = []
    for scorer in scorers:
        for measure, values in scorer.score(images, prompts).items():
            if len(values) != len(samples):
                raise EvaluationError(f"scorer {scorer.name} gave {len(values)} scores for {len(samples)} pictures")
            sign = 1.0 if scorer.higher_is_better else -1.0
            rows.extend(
                {
                    "prompt": p.id,
                    "seed": seed,
                    "model": model,
                    "measure": measure,
                    "value": sign * float(value),
                }
                for (p, seed), value in zip(samples, values, strict=True)
            )
    return rows
