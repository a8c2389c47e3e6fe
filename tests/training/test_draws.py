"""Chance is keyed by (seed, epoch, sample), and by nothing else."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import torch

from tests.training.conftest import World
from training.encode.features import Features
from training.families import family_of
from training.train.draws import batch_samples, draw_null_tokens, draw_sample, is_dropped
from training.train.model import Batches


def test_every_epoch_visits_every_sample_once_in_its_own_order() -> None:
    stream = [sample for step in range(10) for sample in batch_samples(seed=3, step=step, batch_size=4, count=10)]
    epochs = [[index for epoch, index in stream if epoch == e] for e in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert epochs[0] != epochs[1]


def test_draws_follow_their_key() -> None:
    one, same, other = (draw_sample(1, epoch, 5, (4, 8, 8)) for epoch in (0, 0, 1))
    assert np.array_equal(one.noise, same.noise) and one.quantile == same.quantile
    assert not np.array_equal(one.noise, other.noise)
    assert not np.array_equal(one.noise, one.posterior_noise)


def test_quantiles_are_logit_normal() -> None:
    quantiles = np.array([draw_sample(0, 0, index, (1, 1, 1)).quantile for index in range(4000)])
    logits = np.log(quantiles / (1 - quantiles))
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05


def test_captions_are_dropped_as_often_as_asked() -> None:
    dropped = [is_dropped(0, 0, index, 0.2) for index in range(2000)]
    assert 0.16 < np.mean(dropped) < 0.24
    assert not any(is_dropped(0, 0, index, 0.0) for index in range(100))


def test_null_tokens_stay_in_their_range() -> None:
    drawn = {draw_null_tokens(0, step, 1, 8) for step in range(300)}
    assert drawn == set(range(1, 9))
    assert draw_null_tokens(0, 1, 7, 7) == 7


def test_batches_do_not_depend_on_the_number_of_processes(world: World) -> None:
    settings = world.settings(batch_size=8)
    features = Features(world.features, settings)

    def batches(rank: int, of: int) -> Batches:
        return Batches(features, settings, family_of(world.base), rank=rank, world=of)

    for step in (0, 4):
        whole = batches(0, 1)[step]
        halves = [batches(rank, 2)[step] for rank in range(2)]
        for name in ("noisy", "velocity", "timesteps", "target.local", "target.caption"):
            part = attrgetter(name)
            together = torch.cat([part(half) for half in halves])
            assert torch.equal(together, part(whole)), name
        for name, tensor in whole.conditioning.items():
            assert torch.equal(torch.cat([half.conditioning[name] for half in halves]), tensor), name
        # Gradients are averaged over processes, so that both halves together weigh what the whole does.
        shares = torch.cat([half.shares for half in halves]) / 2
        assert torch.allclose(shares, whole.shares) and shares.sum() == 1
