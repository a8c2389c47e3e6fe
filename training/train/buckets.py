"""Aspect-ratio buckets: pictures of several shapes, each batch of one shape. Imports nothing heavy."""

from __future__ import annotations

import math
from functools import lru_cache

from training.train.draws import batch_samples


@lru_cache(maxsize=4)
def turns(counts: tuple[int, ...], steps: int) -> list[tuple[int, int]]:
    """For each step, whose turn it is and for which time: (bucket, number of its batches before).

    Buckets take turns in proportion to their ``counts`` of pictures, evenly spread (Webster's method), so that all
    finish an epoch at nearly the same step.
    """
    shares = [math.ceil(steps * count / sum(counts)) + 1 for count in counts]
    due = [((n + 0.5) / count, b, n) for b, count in enumerate(counts) for n in range(shares[b])]
    return [(bucket, number) for _, bucket, number in sorted(due)[:steps]]


def bucket_samples(seed: int, step: int, steps: int, batch_size: int, counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """The (epoch, sample index) pairs of the global batch of ``step``, all of one bucket.

    Samples are counted through the buckets, ``counts`` pictures in each. Every epoch of a bucket visits each of its
    pictures once; epochs follow each other without a gap, so that a batch may hold the end of one and the begin of the
    next.
    """
    bucket, number = turns(counts, steps)[step]
    first = sum(counts[:bucket])
    drawn = batch_samples(seed, number, batch_size, counts[bucket], first)
    return [(epoch, first + index) for epoch, index in drawn]
