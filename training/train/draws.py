"""Everything that chance decides, keyed by (seed, epoch, sample) and so by nothing else.

A draw does not depend on the number of processes, on which of them trains a sample, or on how many draws came
before it. A run on another number of processes sees the same noise for the same sample, and a run can be taken
up at any step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# One stream per purpose, so that a new kind of draw never shifts the others.
_ORDER, _SAMPLE, _DROPOUT, _STEP = range(4)  # 4 is `training.teach.targets`'s
_REPLAY, _REPLAY_ORDER = 5, 6


@dataclass(frozen=True)
class SampleDraws:
    """What chance decides for one sample in one epoch."""

    noise: NDArray[np.float32]
    """ε, standard normal, (C, h, w)."""
    posterior_noise: NDArray[np.float32]
    """Standard normal, (C, h, w): picks the latent from the VAE's posterior."""
    quantile: float
    """u in (0, 1), logit-normal(0, 1): where on the noise schedule the sample is trained, 1 is pure noise."""


def _generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose, *key))))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int, first: int, purpose: int = _ORDER) -> NDArray[np.int64]:
    return _generator(seed, purpose, epoch, *([first] if first else [])).permutation(count)


def batch_samples(seed: int, step: int, batch_size: int, count: int, first: int = 0) -> list[tuple[int, int]]:
    """The (epoch, sample index) pairs of the global batch of ``step``, counted from 0.

    Every epoch visits all ``count`` samples once, in an order of its own; batches run on across epochs. ``first``
    tells series of samples apart, each in an order of its own.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [(p // count, int(_order(seed, p // count, count, first)[p % count])) for p in positions]


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


def draw_sample(seed: int, epoch: int, index: int, shape: tuple[int, ...]) -> SampleDraws:
    """The draws of sample ``index`` in ``epoch``; ``shape`` is its latents', (C, h, w).

    u follows a logit-normal(0, 1), as in Esser et al., arXiv 2403.03206, section 3.1.
    """
    generator = _generator(seed, _SAMPLE, epoch, index)
    quantile = 1.0 / (1.0 + np.exp(-generator.standard_normal()))
    noise = generator.standard_normal((2, *shape), dtype=np.float32)
    return SampleDraws(noise=noise[0], posterior_noise=noise[1], quantile=float(quantile))


def is_dropped(seed: int, epoch: int, index: int, probability: float) -> bool:
    """Whether the sample's caption is replaced by the empty one in this epoch."""
    return bool(_generator(seed, _DROPOUT, epoch, index).random() < probability)


def draw_null_tokens(seed: int, step: int, fewest: int, most: int) -> int:
    """How many zero tokens follow the CLIP tokens in ``step``: log-uniform over the range, ends included.

    Log-uniform, because it is the ratio of zero tokens to others that attention feels.
    """
    drawn = np.exp(_generator(seed, _STEP, step).uniform(np.log(fewest + 1), np.log(most + 2))) - 1
    return int(np.clip(np.floor(drawn), fewest, most))


def replay_batch(seed: int, step: int, batch_size: int, draws: int) -> list[int]:
    """The replayed draws of the global batch of ``step``: all ``draws`` of them once, in an order of their own, again
    and again."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(seed, p // draws, draws, 0, _REPLAY_ORDER)[p % draws]) for p in positions]


@dataclass(frozen=True)
class ReplayDraw:
    """What chance decides for one replayed input."""

    caption: int
    """Its number among the replayed captions."""
    sigma: float
    """Its noise level."""
    noise: NDArray[np.float32]
    """ε, standard normal, (C, h, w)."""


def draw_replay(seed: int, number: int, captions: int, lowest: float, shape: tuple[int, ...]) -> ReplayDraw:
    """Replayed input ``number``: one of ``captions``, σ uniform between ``lowest`` and 1, noise of ``shape``."""
    generator = _generator(seed, _REPLAY, number)
    caption = int(generator.integers(captions))
    sigma = lowest + (1 - lowest) * generator.random()
    return ReplayDraw(caption, float(sigma), generator.standard_normal(shape, dtype=np.float32))
