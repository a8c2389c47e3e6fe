"""Resamples: what is drawn, what a bound is, and distances of sets against their definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from components.gate.distances import Distances, gram
from components.gate.resampling import SMALLEST_STRATUM, Resampling, bounds, make_strata
from lineage.scores import REFERENCES, Kernel
from tests.gate.tables import scores, with_sets

POLYNOMIAL, RBF = Kernel(name="polynomial"), Kernel(name="rbf", sigma=2.0, scale=1000)


def test_resamples_keep_the_size_of_each_stratum() -> None:
    counts = Resampling(np.array([0] * 25 + [1] * 9), 1500, seed=1).counts
    assert counts.shape == (1500, 34)
    assert (counts[:, :25].sum(axis=1) == 25).all()
    assert (counts[:, 25:].sum(axis=1) == 9).all()
    assert abs(counts.astype(float).var(axis=0).mean() - 0.94) < 0.03  # n·(1/n)·(1 − 1/n), over both strata


def test_small_strata_are_drawn_together() -> None:
    strata = make_strata(["many"] * SMALLEST_STRATUM + ["one", "two", "two"])
    assert strata.tolist() == [0] * SMALLEST_STRATUM + [1, 1, 1]


def test_a_bound_is_an_order_statistic_outside_the_percentile() -> None:
    resampled = np.random.default_rng(0).permutation(np.arange(1000.0))[:, None]
    lower, upper = bounds(resampled, 0.025)
    assert (lower[0], upper[0]) == (24, 975)
    assert lower[0] <= np.quantile(resampled, 0.025)


@pytest.mark.parametrize("scale", [1e-140, 1.0, 1e140])
def test_sums_are_exact_in_any_order(scale: float) -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)) * scale
    order = np.random.default_rng(1).permutation(200)
    resampling = Resampling(np.zeros(200, dtype=np.int64), 1000, seed=0)
    shuffled = Resampling(np.zeros(200, dtype=np.int64), 1000, seed=0)
    shuffled.counts = resampling.counts[:, order]
    assert (resampling.sums(values) == shuffled.sums(values[order])).all()
    assert np.allclose(resampling.sums(values), resampling.counts @ values, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("kernel", [POLYNOMIAL, RBF])
def test_a_kernel_is_its_definition(kernel: Kernel) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(5, 7)).astype(np.float32), draw.normal(size=(6, 7)).astype(np.float32)
    products, apart = x @ y.T, ((x[:, None] - y[None]) ** 2).sum(axis=2)
    expected = (products / 7 + 1) ** 3 if kernel is POLYNOMIAL else np.exp(-apart / (2 * 2.0**2))
    assert np.allclose(gram(x, y, kernel), expected, rtol=1e-4)


def test_a_distance_is_its_definition() -> None:
    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    (kid,) = made.sets.measures
    distances = Distances(kid, made)
    y = kid.features[REFERENCES].astype(np.float64)
    for who in ("candidate", "incumbent"):
        x = kid.features[who].astype(np.float64)
        within, among, across = (((a @ b.T) / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        expected = (within.sum() - np.trace(within)) / (80 * 79) + (among.sum() - np.trace(among)) / (100 * 99)
        assert -distances.score(who) == pytest.approx(expected - 2 * across.mean(), rel=1e-5)


def test_a_distance_is_the_library_s() -> None:
    from torch import from_numpy
    from torchmetrics.image.kid import poly_mmd

    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    (whole,) = made.sets.measures
    # The library's formula holds for sets of one size.
    kid = replace(whole, features={**whole.features, REFERENCES: whole.features[REFERENCES][:80]})
    theirs = poly_mmd(*(from_numpy(kid.features[name]).double() for name in ("incumbent", REFERENCES)))
    assert -Distances(kid, made).score("incumbent") == pytest.approx(float(theirs), rel=1e-5)


def test_a_resampled_distance_leaves_out_each_picture_s_pairs_with_its_own_copies() -> None:
    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    (kid,) = made.sets.measures
    resampling = Resampling(np.zeros(len(made.prompts), dtype=np.int64), 1000, seed=0)
    found = Distances(kid, made).differences("candidate", "incumbent", resampling)

    def distance(who: str, drawn: np.ndarray) -> float:
        # As defined: every drawn picture, put in as often as it was drawn; pairs of one with itself do not count.
        x, y = kid.features[who][drawn], kid.features[REFERENCES]
        other = drawn[:, None] != drawn[None, :]
        return float((gram(x, x, POLYNOMIAL) * other).sum() / other.sum() - 2 * gram(x, y, POLYNOMIAL).mean())

    for resample in (0, 1, 999):
        drawn = np.repeat(np.arange(len(made.prompts)), resampling.counts[resample])
        expected = -(distance("candidate", drawn) - distance("incumbent", drawn))
        assert found[resample] == pytest.approx(expected, rel=1e-6)
