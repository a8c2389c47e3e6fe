"""Resamples: what is drawn, what a bound is, and distances of sets against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from components.gate.distances import Distances, gram
from components.gate.figures import Figure, Group, per_prompt_figures
from components.gate.resampling import COARSER, TOTAL, Resampling, lower_bound, upper_bound
from components.gate.settings import AXES, GateSettings
from lineage.scores import REFERENCES, Kernel
from tests.gate.tables import scores, with_sets

POLYNOMIAL, RBF = Kernel(name="polynomial"), Kernel(name="rbf", sigma=2.0, scale=1000)


def figure(differences: np.ndarray, **rules: float) -> Figure:
    """What the gate makes of one difference a prompt, on scores from 0 to 1."""
    settings = GateSettings(margins=dict.fromkeys(AXES, 0.1), **rules)  # type: ignore[arg-type]
    group = Group("a", "alignment", "axis", np.ones(len(differences), dtype=np.bool_), 0.1)
    incumbent = np.where(differences < 0, -differences, 0.0)
    rows = (incumbent + differences)[None], incumbent[None]
    (made,) = per_prompt_figures([group], *rows, Resampling(len(differences), settings.resamples, 0), settings)
    return made


def test_weights_add_up_and_vary_as_dirichlet_s() -> None:
    weights = Resampling(34, 1500, seed=1).weights
    assert weights.shape == (1500, 35)
    assert (weights.sum(axis=1) == TOTAL).all() and (weights >= 0).all()
    shares = weights / TOTAL
    assert shares.mean(axis=0) == pytest.approx(np.full(35, 1 / 35), rel=0.15)
    assert shares.var(axis=0).mean() == pytest.approx(34 / 35**2 / 36, rel=0.1)


@pytest.mark.parametrize("failures", [0, 1, 4])
@pytest.mark.parametrize("prompts", [60, 400])
def test_where_nothing_gains_a_bound_is_that_of_clopper_and_pearson(prompts: int, failures: int) -> None:
    lost = np.zeros(prompts)
    lost[:failures] = -1
    outside, exact = (-beta.ppf(1 - level, failures + 1, prompts - failures) for level in (0.0012, 0.003))
    assert outside < figure(lost).lower < exact


def test_a_gain_is_what_mcnemar_s_exact_test_says() -> None:
    for gained, lost in ((4, 0), (9, 0), (10, 0), (11, 0), (15, 1), (20, 1), (20, 6), (40, 10)):
        differences = np.repeat([1.0, -1.0, 0.0], [gained, lost, 100])
        p = binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue
        if not 0.4 < p / GateSettings(margins=dict.fromkeys(AXES, 0.1)).gain_level < 1:  # resamples differ a little
            assert (figure(differences).lower_gain > 0) == (p < 0.05 / 60), (gained, lost)


def test_a_bound_is_an_order_statistic_outside_the_percentile() -> None:
    resampled = np.random.default_rng(0).permutation(np.arange(1000.0))[:, None]
    assert (lower_bound(resampled, 0.025)[0], upper_bound(resampled, 0.025)[0]) == (19, 980)


@pytest.mark.parametrize("scale", [1e-140, 1.0, 1e140])
def test_sums_are_exact_in_any_order(scale: float) -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)) * scale
    order = np.random.default_rng(1).permutation(200)
    resampling, shuffled = Resampling(200, 1000, seed=0), Resampling(200, 1000, seed=0)
    shuffled.weights = resampling.weights[:, [*order, 200]]
    assert (resampling.sums(values, 10 * scale) == shuffled.sums(values[order], 10 * scale)).all()
    assert np.allclose(resampling.sums(values, 10 * scale), resampling.weights[:, :-1] @ values, atol=scale)


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
    distances = Distances(kid, made, made.prompts)
    y = kid.features[REFERENCES].astype(np.float64)
    for who in ("candidate", "incumbent"):
        x = kid.features[who].astype(np.float64)
        within, among, across = (((a @ b.T) / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        expected = (within.sum() - np.trace(within)) / (160 * 159) + (among.sum() - np.trace(among)) / (160 * 159)
        assert -distances.score(who) == pytest.approx(expected - 2 * across.mean(), rel=1e-5)


def test_a_distance_is_the_library_s() -> None:
    from torch import from_numpy
    from torchmetrics.image.kid import poly_mmd

    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    (kid,) = made.sets.measures
    theirs = poly_mmd(*(from_numpy(kid.features[name]).double() for name in ("incumbent", REFERENCES)))
    assert -Distances(kid, made, made.prompts).score("incumbent") == pytest.approx(float(theirs), rel=1e-5)


def test_a_resampled_distance_leaves_out_each_picture_s_pairs_with_itself() -> None:
    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    (kid,) = made.sets.measures
    resampling = Resampling(len(made.prompts), 1000, seed=0)
    found = Distances(kid, made, made.prompts).differences("candidate", "incumbent", resampling)

    def distance(who: str, weights: np.ndarray) -> float:
        x, y = kid.features[who], kid.features[REFERENCES]
        both = np.outer(weights, weights) * (1 - np.eye(len(x)))
        across = gram(x, y, POLYNOMIAL).mean(axis=1) @ weights / weights.sum()
        return float((gram(x, x, POLYNOMIAL) * both).sum() / both.sum() - 2 * across)

    for resample in (0, 1, 999):
        weights = resampling.weights[resample, :-1] // COARSER
        expected = -(distance("candidate", weights) - distance("incumbent", weights))
        assert found[resample] == pytest.approx(expected, rel=1e-6)
