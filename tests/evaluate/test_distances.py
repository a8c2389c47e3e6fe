"""Distances agree with a library, or with values worked out from their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from components.evaluate.distances import BLOCK, cmmd, frechet, kid, nearest, spread, usual_distance, vendi


def features(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 6))


def test_kid_is_that_of_torchmetrics() -> None:
    a, b = features(40), features(40, 0.5, 1)
    expected = float(poly_mmd(torch.from_numpy(b), torch.from_numpy(a)))
    assert kid(a, b) == pytest.approx(expected, rel=1e-9), "with equal counts every subset is the whole"
    assert kid(a, features(60, 0.5, 1)) == kid(a, features(60, 0.5, 1)), "subsets are fixed"
    assert kid(a, b) > kid(a, features(40, 0.0, 2))


def test_cmmd_is_what_its_authors_code_gives() -> None:
    # The published implementation (exp(-gamma (x.x - 2 x.y + y.y)), gamma = 1 / (2 * 10²), times 1000), written out
    # pair by pair on three and two fixed points.
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    y = np.array([[-1.0, 0.0], [0.0, -1.0]])

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return sum(np.exp(-((p - q) @ (p - q)) / 200) for p in a for q in b) / (len(a) * len(b))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-12)
    assert cmmd(x, y) == pytest.approx(22.5542, abs=5e-5), "worked out by hand"
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_two_gaussians() -> None:
    a, b = features(300), features(200, 0.7, 1)
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    first, second = np.cov(a.T), np.cov(b.T)
    roots = np.linalg.eigvals(first @ second)
    expected = mean + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.abs(roots)).sum()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)
    identity = torch.nn.Identity()
    identity.num_features = 6  # type: ignore[assignment]
    library = FrechetInceptionDistance(feature=identity)
    library.update(torch.from_numpy(b), real=True)
    library.update(torch.from_numpy(a), real=False)
    assert frechet(a, b) == float(library.compute())


def test_the_nearest_of_many_is_found_in_blocks() -> None:
    others = features(BLOCK + 300)
    samples = np.concatenate([features(20, 0.1, 3), others[[5, BLOCK + 7]]])
    expected = np.linalg.norm(samples[:, None] - others[None], axis=2).min(axis=1)
    assert nearest(samples, others) == pytest.approx(expected, abs=1e-6)
    assert nearest(samples, others)[-2:] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(("copies", "share"), [(0.0, (0.0, 0.03)), (0.1, (0.08, 0.14)), (1.0, (1.0, 1.0))])
def test_copies_of_training_pictures_are_counted_and_a_perfect_model_s_are_not(
    copies: float, share: tuple[float, float]
) -> None:
    training, heldout, samples = features(2000, seed=1), features(400, seed=2), features(1000, seed=3)
    samples[: int(copies * 1000)] = training[: int(copies * 1000)]
    found = (nearest(samples, training) < usual_distance(heldout, training)).mean()
    assert share[0] <= found <= share[1]


def test_what_is_usual_needs_a_hundred_pictures_that_nobody_trained_on() -> None:
    assert usual_distance(features(100, seed=2), features(50)) > 0
    with pytest.raises(ValueError, match="98 held-out pictures are too few: 100 at least"):
        usual_distance(features(98, seed=2), features(50))


def test_spread_is_within_a_prompt_and_vendi_over_all() -> None:
    pictures = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert spread(pictures, [0, 0, 1, 1, 2])[:4].tolist() == [1, 1, 0, 0]
    assert np.isnan(spread(pictures, [0, 0, 1, 1, 2])[4])
    assert spread(pictures[:3], [0, 0, 0]) == pytest.approx([0.5, 1.0, 0.5])
    assert vendi(np.ones((9, 4))) == pytest.approx(1)
    assert vendi(np.eye(7)) == pytest.approx(7)
