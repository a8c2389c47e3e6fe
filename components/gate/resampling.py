"""Bounds of a mean that hold for any scores of a known range, rare failures and few prompts included.

The lower bound is that of E. Learned-Miller and P. Thomas (arXiv 1905.06208; N. Gaffke, 2005): the α quantile of the
prompts' weighted mean, where the weights are the gaps between sorted uniform numbers and one gap more belongs to a
prompt that nobody has seen, which loses as much as a prompt can. Two cases of it are exact tests of old: where no
prompt gains, it is the interval of Clopper and Pearson; it is above 0 exactly where McNemar's exact test on the prompts
that differ says so, if each differs by as much as it can. That it covers for every distribution is proven there for
some cases, conjectured for all, and not contradicted by any simulation that we know or made.

All sums are of whole numbers that floats hold exactly, so that a table of scores gives one verdict, bit by bit, on any
machine and in any order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK = 1000
"""Resamples multiplied at once, which bounds the memory."""
EXACT = 53
"""Bits of a whole number that a float holds exactly."""
TOTAL = 2**22
"""The weights of a resample add up to it."""
COARSER = 2**10
"""By which weights are divided where two of them are multiplied."""


class Resampling:
    """The weights of all prompts in each resample; shared by all figures, so that they hang together."""

    def __init__(self, prompts: int, resamples: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.weights = np.empty((resamples, prompts + 1), dtype=np.int32)
        """(B, P + 1); the last one is of the prompt that nobody has seen."""
        for start in range(0, resamples, BLOCK):
            cuts = generator.integers(0, TOTAL, (min(BLOCK, resamples - start), prompts), np.int32, endpoint=True)
            cuts.sort(axis=1)
            self.weights[start : start + BLOCK] = np.diff(cuts, axis=1, prepend=0, append=TOTAL)

    @property
    def unseen(self) -> Floats:
        """(B, 1): the weight of the prompt that nobody has seen."""
        return self.weights[:, -1:].astype(np.float64)

    def sums(self, values: Floats, largest: float | None = None, divisor: int = 1) -> Floats:
        """(B, G): the weighted sum of each column of ``values`` (P, G), none of them beyond ±``largest``.

        Args:
            divisor: of the weights; `COARSER` for those of `quadratic`.
        """
        whole, scale = to_whole(values, TOTAL // divisor, largest)
        return np.concatenate([block @ whole for block in self._blocks(divisor)]) / scale

    def quadratic(self, pairs: Floats) -> Floats:
        """(B,): the sum of ``pairs`` (P, P), each weighted by both of its prompts."""
        whole, scale = to_whole(pairs, (TOTAL // COARSER) ** 2)
        return np.concatenate([((block @ whole) * block).sum(axis=1) for block in self._blocks(COARSER)]) / scale

    def _blocks(self, divisor: int) -> Iterator[Floats]:
        parts = (self.weights[start : start + BLOCK, :-1] for start in range(0, len(self.weights), BLOCK))
        return ((part // divisor).astype(np.float64) for part in parts)


def to_whole(values: Floats, terms: int, largest: float | None = None) -> tuple[Floats, float]:
    """``values`` as whole numbers, and their scale: whole / scale is the value.

    ``terms`` of them, repeated ones counted, add up without rounding, so in any order to the same.
    """
    largest = float(np.abs(values).max(initial=0.0)) if largest is None else largest
    exponent = max(math.frexp(largest)[1], -900)
    scale = math.ldexp(1.0, EXACT - 1 - math.ceil(math.log2(terms + 1)) - exponent)
    return np.rint(values * scale), scale


def rank(resamples: int, alpha: float) -> int:
    """Which of so many resamples in order is the α bound: one standard error of their number further out than α."""
    expected = alpha * (resamples + 1)
    return math.floor(expected - math.sqrt(expected)) - 1


def lower_bound(resampled: Floats, alpha: float) -> Floats:
    """(G,): the one-sided lower α bound of each column of ``resampled`` (B, G)."""
    place = rank(len(resampled), alpha)
    bound: Floats = np.partition(resampled, place, axis=0)[place]
    return bound


def upper_bound(resampled: Floats, alpha: float) -> Floats:
    """(G,): as `lower_bound`, from above."""
    return -lower_bound(-resampled, alpha)


def mean(values: Floats) -> float:
    """The mean, correctly rounded: the same on any machine."""
    return math.fsum(values.tolist()) / len(values)
