"""The paired bootstrap: one draw of prompts for every figure, and bounds that are exact order statistics.

Prompts, each with all its seeds, are drawn with replacement within strata (percentile bootstrap, B. Efron and R.
Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). All sums are of whole numbers that floats hold exactly, so
that a table of scores gives one verdict, bit by bit, on any machine and in any order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK = 1000
"""Resamples multiplied at once, which bounds the memory."""
EXACT = 53
"""Bits of a whole number that a float holds exactly."""
SMALLEST_STRATUM = 8
"""Prompts; a smaller stratum would hardly vary from resample to resample, so the small ones are drawn together."""


def make_strata(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """(P,): the stratum of each prompt, by its key; keys of too few prompts share one."""
    sizes = {key: keys.count(key) for key in set(keys)}
    names = [key if sizes[key] >= SMALLEST_STRATUM else None for key in keys]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.int64)


class Resampling:
    """How often each resample draws each prompt; shared by all figures, so that they hang together.

    Args:
        strata: (P,), as `make_strata` gives.
    """

    def __init__(self, strata: NDArray[np.int64], resamples: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.counts = np.empty((resamples, len(strata)), dtype=np.uint16)
        """(B, P); each stratum is drawn as often as it has prompts."""
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            for block in self._blocks():
                drawn = generator.integers(0, len(members), size=(len(self.counts[block]), len(members)))
                drawn += np.arange(len(drawn))[:, None] * len(members)
                tally = np.bincount(drawn.ravel(), minlength=drawn.size)
                self.counts[block, members] = tally.reshape(drawn.shape)

    def sums(self, values: Floats) -> Floats:
        """(B, G): the sum of each column of ``values`` (P, G) over each resample."""
        whole, scale = to_whole(values, len(values))
        return np.concatenate([self.counts[block].astype(np.float64) @ whole for block in self._blocks()]) / scale

    def quadratic(self, pairs: Floats) -> Floats:
        """(B,): the sum of ``pairs`` (P, P) over all ordered pairs of prompts of each resample."""
        whole, scale = to_whole(pairs.reshape(-1, 1), pairs.size)
        whole = whole.reshape(pairs.shape)
        drawn = (self.counts[block].astype(np.float64) for block in self._blocks())
        return np.concatenate([((counts @ whole) * counts).sum(axis=1) for counts in drawn]) / scale

    def _blocks(self) -> list[slice]:
        return [slice(start, start + BLOCK) for start in range(0, len(self.counts), BLOCK)]


def to_whole(values: Floats, terms: int) -> tuple[Floats, Floats]:
    """``values`` (N, G) as whole numbers, and each column's scale: whole / scale is the value.

    ``terms`` of them, repeated ones counted, add up without rounding, so in any order to the same.
    """
    largest = np.abs(values).max(axis=0, initial=0.0)
    exponents = np.maximum(np.frexp(largest)[1], -900)
    scale = np.ldexp(1.0, EXACT - 1 - math.ceil(math.log2(terms + 1)) - exponents)
    return np.rint(values * scale), scale


def bounds(resampled: Floats, alpha: float) -> tuple[Floats, Floats]:
    """(G,), (G,): one-sided lower and upper α bounds of each column of ``resampled`` (B, G).

    The ⌊α(B+1)⌋-th smallest and largest: never inside the percentiles, monotone in every score, and exchanged with
    their signs where the two models are exchanged.
    """
    place = math.floor(alpha * (len(resampled) + 1)) - 1
    ordered = np.partition(resampled, [place, len(resampled) - 1 - place], axis=0)
    return ordered[place], ordered[len(resampled) - 1 - place]


def mean(values: Floats) -> float:
    """The mean, correctly rounded: the same on any machine."""
    return math.fsum(values.tolist()) / len(values)
