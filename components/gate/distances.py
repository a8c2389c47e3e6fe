"""Set-level measures: the kernel distance between a model's pictures and the references, and its resamples.

MMD² (A. Gretton et al., A Kernel Two-Sample Test, 2012, eq. 3) without any picture's pair with itself, in resamples
too, where each picture has its prompt's weight: Σ_{i≠j} w_i w_j k_ij / Σ_{i≠j} w_i w_j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.gate.resampling import COARSER, EXACT, Floats, Resampling, to_whole
from components.gate.scores import Scores, UnusableScores
from lineage.scores import REFERENCES, Kernel, SetMeasure


class Distances:
    """One set-level measure of every model, per prompt, so that resamples of prompts need no features any more."""

    def __init__(self, measure: SetMeasure, scores: Scores, among: Sequence[str]) -> None:
        assert scores.sets is not None
        rows, place = scores.sets.rows, {prompt: number for number, prompt in enumerate(among)}
        order = sorted((row for row in range(len(rows)) if rows[row][0] in place), key=rows.__getitem__)
        prompts = np.array([place[rows[row][0]] for row in order])
        self.scale = measure.kernel.scale
        self.sizes = np.bincount(prompts).astype(np.float64)
        """(P,): pictures of each prompt."""
        references = measure.features[REFERENCES]
        if len(references) < 2 or len(prompts) < 2:
            raise UnusableScores(
                f"{measure.measure}: a distance of sets needs two pictures and two references at least"
            )
        alike = gram(references, references, measure.kernel)
        self.among_references = float(alike.sum() - np.trace(alike)) / _pairs(len(alike))
        starts = np.flatnonzero(np.diff(prompts, prepend=-1))
        self.within: dict[str, Floats] = {}
        """Model -> (P, P): sums over pairs of different pictures."""
        self.across: dict[str, Floats] = {}
        """Model -> (P,): sums over pictures of their mean likeness to the references."""
        for model in scores.models:
            features = measure.features[model][order]
            alike = gram(features, features, measure.kernel)
            np.fill_diagonal(alike, 0.0)
            self.within[model] = np.add.reduceat(np.add.reduceat(alike, starts, axis=0), starts, axis=1)
            across = gram(features, references, measure.kernel).sum(axis=1) / len(references)
            self.across[model] = np.add.reduceat(across, starts)

    def score(self, model: str) -> float:
        """The negated distance of all pictures, scaled."""
        pictures = float(self.sizes.sum())
        within = math.fsum(self.within[model].ravel().tolist()) / _pairs(pictures)
        across = math.fsum(self.across[model].tolist()) / pictures
        return -self.scale * (within + self.among_references - 2 * across)

    def differences(self, model: str, other: str, resampling: Resampling) -> Floats:
        """(B,): how much better ``model`` scores than ``other`` in each resample.

        Raises:
            UnusableScores: a resample has no two pictures.
        """
        pairs = resampling.quadratic(np.outer(self.sizes, self.sizes) - np.diag(self.sizes))
        if not (pairs > 0).all():
            raise UnusableScores("there are too few prompts to resample a distance of sets")
        within = resampling.quadratic(self.within[model] - self.within[other]) / pairs
        across = resampling.sums((self.across[model] - self.across[other])[:, None], divisor=COARSER)[:, 0]
        pictures = resampling.sums(self.sizes[:, None], divisor=COARSER)[:, 0]
        scores: Floats = self.scale * (2 * across / pictures - within)
        return scores


def gram(x: NDArray[np.float32], y: NDArray[np.float32], kernel: Kernel) -> Floats:
    """(N, M): how alike each of ``x`` (N, d) is to each of ``y`` (M, d), so rounded that sums of them are exact."""
    dimensions = x.shape[1]
    largest = max(float(np.abs(x).max()), float(np.abs(y).max()), 1e-30)
    # Rounded before, so that no product or sum of products is: the same on any machine.
    scale = 2.0 ** ((EXACT - 3 - math.ceil(math.log2(dimensions + 1))) // 2 - math.frexp(largest)[1])
    a, b = np.rint(x.astype(np.float64) * scale), np.rint(y.astype(np.float64) * scale)
    products: Floats = a @ b.T
    if kernel.name == "polynomial":
        base = products / (scale * scale * dimensions) + 1.0
        alike = base * base * base
    else:
        squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * products
        alike = np.exp(squared / (-2 * (kernel.sigma * scale) ** 2))
    whole, unit = to_whole(alike, alike.size)
    return whole / unit


def _pairs(count: float) -> float:
    return count * (count - 1)
