"""What else trains over two processes: an adapter whose frozen base is sharded, and a family other than SD3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.encode_features.pictures import encode_pictures
from tests.training.conftest import World
from tests.training.forked import Run, run_all
from tests.training.test_lora import ADAPTER, SETTINGS, WEIGHTS
from tests.training.tiny_families import save_flux
from training.families import family_of
from training.settings import TrainingSettings
from training.train.curves import read_points
from training.train.deepspeed_config import deepspeed_config


def shards_small_weights(settings: TrainingSettings) -> dict[str, Any]:
    """ZeRO-3 leaves small weights whole, and a tiny model has no others."""
    config = deepspeed_config(settings)
    if settings.stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    place = tmp_path_factory.mktemp("two")
    flux = world.settings(
        base_model=save_flux(place / "flux"), buckets=((32, 32),), max_sequence_length=16, log_every=1
    )
    encode_pictures(flux, world.validated, place / "features")
    lora = {"method": "lora", "lora": SETTINGS, "log_every": 1, "steps": 8, "ema_decay": 0.1}
    made = {
        f"lora, zero {stage}": Run(world.settings(**lora, zero_stage=stage), world.features, place / f"lora-{stage}")
        for stage in (0, 3)
    }
    made["flux"] = Run(flux, place / "features", place / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.launch.launch.deepspeed_config", shards_small_weights)
        statuses = run_all(*made.values())
    assert all(of == [0, 0] for of in statuses), (statuses, [run.error() for run in made.values()])
    return made


def test_an_adapter_learns_the_same_where_its_frozen_base_is_sharded(runs: Mapping[str, Run]) -> None:
    whole, sharded = runs["lora, zero 0"], runs["lora, zero 3"]
    points = [[{**p.metrics(), "samples_per_second": 0} for p in read_points(run.curves)] for run in (whole, sharded)]
    assert len(points[0]) == 8 and all(
        two == pytest.approx(one, rel=2e-5, abs=2e-6) for one, two in zip(*points, strict=True)
    )
    for file in (ADAPTER, WEIGHTS):
        one, two = load_file(whole.candidate / file), load_file(sharded.candidate / file)
        assert one.keys() == two.keys()
        assert all(two[name].sub(tensor).abs().max() < 1e-4 for name, tensor in one.items())
    base, learnt = (load_file(path / WEIGHTS) for path in (whole.settings.base_model, sharded.candidate))
    assert any(learnt[name].sub(tensor).abs().max() > 1e-3 for name, tensor in base.items()), "there was much to learn"


def test_flux_trains_under_deepspeed_and_its_candidate_draws(runs: Mapping[str, Run]) -> None:
    run = runs["flux"]
    assert [point.step for point in read_points(run.curves)] == [1, 2, 3, 4, 5]
    before, after = load_file(run.settings.base_model / WEIGHTS), load_file(run.candidate / WEIGHTS)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and len(moved) > 0.9 * len(before)
    pipeline = family_of(run.candidate).load_pipeline()
    drawn = pipeline("a portrait", height=32, width=32, num_inference_steps=2, max_sequence_length=16, output_type="np")
    assert drawn.images.shape == (1, 32, 32, 3) and drawn.images.std() > 0
