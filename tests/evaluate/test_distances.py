"""Distances agree with a library, or with values worked out from their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from components.evaluate.distances import cmmd, frechet, kid, match_captions, nearer_to_training


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


def test_memorisation_on_points_of_a_line() -> None:
    samples = np.array([[0.0], [1.1], [2.0], [5.0], [3.0]])
    training, heldout = np.array([[0.1], [2.0], [9.0]]), np.array([[1.0], [4.6], [2.5]])
    assert nearer_to_training(samples, training, heldout).tolist() == [1, 0, 1, 0, 0]
    assert nearer_to_training(np.array([[1.5]]), np.array([[1.0]]), np.array([[2.0]])).tolist() == [0], "a tie"
    with pytest.raises(ValueError, match="cannot be compared"):
        nearer_to_training(samples, training, heldout[:2])


def test_pictures_are_paired_by_what_their_captions_say() -> None:
    training = ["a portrait, beard", "a portrait, glasses, dark skin", "a portrait, light skin"]
    heldout = ["a portrait, light skin, hat", "A portrait, dark skin, glasses"]
    ours, theirs = match_captions(training, heldout)
    assert dict(zip(theirs, ours, strict=True)) == {0: 2, 1: 1}
    ours, theirs = match_captions(training[:1], heldout)
    assert (len(ours), len(theirs)) == (1, 1)
    many, few = match_captions(["a, b"] * 500, ["a, b"] * 3)
    assert len(set(many)) == 3 and sorted(few) == [0, 1, 2]
