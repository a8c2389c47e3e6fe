"""Distances between features: of a set of samples from the references, of a sample from what was trained on or drawn.

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
USUAL = 0.01
"""Of pictures that nobody trained on, so many count as copies all the same."""
BLOCK = 8192


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


def nearest(features: Features, others: Features) -> Features:
    """(N,): how far each of ``features`` lies from the nearest of ``others``, in blocks of `BLOCK` of these."""
    found = np.full(len(features), np.inf)
    own = (features**2).sum(1)
    for start in range(0, len(others), BLOCK):
        block = others[start : start + BLOCK]
        squares = own + ((block**2).sum(1)[:, None] - 2 * block @ features.T).min(axis=0)
        np.minimum(found, squares, out=found)
    distances: Features = np.sqrt(found.clip(0))
    return distances


def usual_distance(heldout: Features, training: Features) -> float:
    """The distance below which `USUAL` of pictures that nobody trained on have their nearest training picture.

    Raises:
        ValueError: there are too few of them to know.
    """
    place = int(USUAL * (len(heldout) + 1)) - 1
    if place < 0:
        raise ValueError(f"{len(heldout)} held-out pictures are too few: {round(1 / USUAL)} at least")
    return float(np.sort(nearest(heldout, training))[place])


def spread(features: Features, groups: Sequence[int]) -> Features:
    """(N,): the mean of 1 - cosine to the other pictures of the same group; NaN for one that is alone in its group."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    same = np.equal.outer(groups, groups) & ~np.eye(len(unit), dtype=bool)
    counts = same.sum(axis=1)
    apart = ((1 - unit @ unit.T) * same).sum(axis=1)
    means: Features = np.divide(apart, counts, out=np.full(len(unit), np.nan), where=counts > 0)
    return means


def vendi(features: Features) -> float:
    """The Vendi score (D. Friedman and A. Dieng, arXiv 2210.02410) by cosine: how many different pictures."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit.T @ unit / len(unit)).clip(1e-15)
    return float(np.exp(-(shares * np.log(shares)).sum()))
