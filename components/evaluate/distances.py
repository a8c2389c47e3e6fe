"""Distances between features: of a set of samples from the references, and of a sample from what was trained on.

Features are (N, d) float64, one row a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Features = NDArray[np.float64]

SUBSETS = 20
CMMD_BANDWIDTH, CMMD_SCALE = 10.0, 1000.0
MOST_CANDIDATES = 20
"""Training pictures looked at for each held-out one when the two are matched."""


def kid(features: Features, references: Features) -> float:
    """KID (M. Bińkowski et al., arXiv 1801.01401) by torchmetrics: the mean over `SUBSETS` fixed random subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(features), len(references))
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=SUBSETS, subset_size=size)
    metric.update(torch.from_numpy(references), real=True)
    metric.update(torch.from_numpy(features), real=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(metric.compute()[0])


def cmmd(features: Features, references: Features) -> float:
    """CMMD (S. Jayasumana et al., arXiv 2401.09603): MMD² with k(x, y) = exp(−|x − y|² / 2σ²), σ = 10, times 1000.

    As its authors compute it: the means are over all pairs, each picture's pair with itself included.
    """

    def mean(a: Features, b: Features) -> float:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        return float(np.exp(-squares / (2 * CMMD_BANDWIDTH**2)).mean())

    return CMMD_SCALE * (mean(features, features) + mean(references, references) - 2 * mean(features, references))


def frechet(features: Features, references: Features) -> float:
    """The Fréchet distance of two Gaussians (M. Heusel et al., arXiv 1706.08500) by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = torch.nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=identity)
    metric.update(torch.from_numpy(references), real=True)
    metric.update(torch.from_numpy(features), real=False)
    return float(metric.compute())


DISTANCES: dict[str, Callable[[Features, Features], float]] = {"kid": kid, "cmmd": cmmd, "frechet": frechet}


def nearer_to_training(samples: Features, training: Features, heldout: Features) -> Features:
    """(N,): 1 where a sample's nearest training picture is nearer than its nearest held-out one, else 0.

    ``training`` and ``heldout`` have equally many rows: by chance alone half of the samples are nearer to either.
    """
    if training.shape != heldout.shape:
        raise ValueError(f"{len(training)} training pictures cannot be compared with {len(heldout)} held-out ones")
    return (_nearest(samples, training) < _nearest(samples, heldout)).astype(np.float64)


def _nearest(samples: Features, others: Features) -> Features:
    squares = (samples**2).sum(1)[:, None] + (others**2).sum(1)[None, :] - 2 * samples @ others.T
    nearest: Features = squares.min(axis=1)
    return nearest


def match_captions(training: Sequence[str], heldout: Sequence[str]) -> tuple[list[int], list[int]]:
    """Pair training with held-out pictures whose captions say the same things, as far as there are any.

    The smaller side is used whole. The pairing has the highest sum of Jaccard similarities of the captions' phrases.

    Returns:
        Indices into ``training`` and into ``heldout``, equally many.
    """
    from scipy.optimize import linear_sum_assignment

    step = max(1, len(training) // (MOST_CANDIDATES * len(heldout)))
    considered = list(range(0, len(training), step))
    said = [[{p.strip() for p in text.lower().split(",")} for text in texts] for texts in (training, heldout)]
    known = {phrase: place for place, phrase in enumerate(sorted({p for side in said for set_ in side for p in set_}))}

    def table(sets: Sequence[set[str]]) -> Features:
        rows = np.zeros((len(sets), len(known)))
        for row, phrases in zip(rows, sets, strict=True):
            row[[known[phrase] for phrase in phrases]] = 1
        return rows

    a, b = table([said[0][place] for place in considered]), table(said[1])
    both = a @ b.T
    similarity = both / (a.sum(1)[:, None] + b.sum(1)[None, :] - both)
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return [considered[row] for row in rows], columns.tolist()
