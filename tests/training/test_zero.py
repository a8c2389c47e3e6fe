"""Whatever DeepSpeed shards, and in however many parts a batch is worked through, it is the same training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.conftest import World
from tests.training.forked import Run, run_all
from training.families import family_of
from training.settings import SampleSettings
from training.train.curves import CurvePoint, read_points
from training.train.deepspeed_config import deepspeed_config
from training.train.loop import MOST_SKIPPED

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
WAYS = {
    "zero 0": {"zero_stage": 0},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3},
    "zero 2, offload": {"zero_stage": 2, "offload": True},
    "zero 3, offload": {"zero_stage": 3, "offload": True},
    "zero 2, two parts": {"zero_stage": 2, "gradient_accumulation": 2},
    "zero 0, two parts": {"zero_stage": 0, "gradient_accumulation": 2},
    "one process": {"processes": 1},
    "one process, sharded code": {"processes": 1, "zero_stage": 3},
}


@pytest.fixture(scope="module")
def ways(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """20 steps at the same global batch, each way; a small bound on the gradient, so that clipping is compared too."""
    place = tmp_path_factory.mktemp("ways")
    samples = SampleSettings(every=10, prompts=("a portrait", "a portrait, red shirt"), steps=2)
    common = {"steps": 20, "batch_size": 4, "log_every": 1, "max_gradient_norm": 0.5, "warmup_steps": 2}
    runs = {
        name: Run(world.settings(**(common | way)), world.features, place / name.replace(" ", "-"))
        for name, way in WAYS.items()
    }
    seen = runs["zero 3"].settings.model_copy(update={"samples": samples})
    runs["zero 3"] = replace(runs["zero 3"], settings=seen)
    statuses = run_all(*runs.values())
    assert all(set(of) == {0} for of in statuses), statuses
    return runs


def _without_time(points: list[CurvePoint]) -> list[dict[str, float]]:
    return [{n: v for n, v in p.metrics().items() if n != "samples_per_second"} for p in points]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "zero 0"])
def test_losses_and_gradients_are_those_of_unsharded_training(ways: Mapping[str, Run], way: str) -> None:
    plain, other = (_without_time(read_points(ways[name].curves)) for name in ("zero 0", way))
    assert len(plain) == 20
    for step, (one, two) in enumerate(zip(plain, other, strict=True), start=1):
        assert two == pytest.approx(one, rel=2e-5, abs=2e-6), f"step {step}"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "zero 0"])
def test_the_averaged_weights_are_too(ways: Mapping[str, Run], way: str) -> None:
    plain, other = (load_file(ways[name].candidate / WEIGHTS) for name in ("zero 0", way))
    assert plain.keys() == other.keys()
    for name, tensor in plain.items():
        assert other[name].sub(tensor).abs().max() < 1e-4, name


def test_gradients_were_clipped_and_the_two_losses_compared(ways: Mapping[str, Run]) -> None:
    points = read_points(ways["zero 3"].curves)
    assert max(point.gradient_norm for point in points) > 0.5
    compared = [p for p in points if p.gradient_cosine is not None and p.gradient_ratio is not None]
    assert compared and all(-1 <= p.gradient_cosine <= 1 and p.gradient_ratio > 0 for p in compared)  # type: ignore[operator]
    assert points[0].gradient_cosine is None, "the warm-up cuts the supervision off from the tapped stream"
    assert points[-1].gradient_cosine is None, "the supervision has ended"


def test_gradients_of_half_precision_are_summed_in_fp32(world: World) -> None:
    config = deepspeed_config(world.settings(precision="bf16", gradient_accumulation=2))
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(("processes", "step"), [(2, MOST_SKIPPED), (1, 1)], ids=["zero 2", "unsharded"])
def test_gradients_that_are_not_finite_end_training(world: World, tmp_path: Path, processes: int, step: int) -> None:
    settings = world.settings(processes=processes, steps=MOST_SKIPPED + 5, log_every=1)
    run = Run(settings, world.features, tmp_path, spoilt=True)
    assert 0 not in run_all(run)[0]
    assert f"the gradients are not finite at step {step} of {settings.steps}" in run.error()
    assert "nothing is exported, there is no checkpoint" in run.error()
    points = read_points(run.curves)
    assert len(points) == step - 1 and all(point.gradient_norm is None for point in points)


def test_pictures_are_drawn_with_the_averaged_weights_and_disturb_nothing(ways: Mapping[str, Run]) -> None:
    """ZeRO 3 drew them while it trained, and its losses are those of ZeRO 0, which drew none."""
    run = ways["zero 3"]
    drawn = sorted((run.place / "curves-samples").iterdir())
    assert [path.name for path in drawn] == ["step-00000010.png", "step-00000020.png"]
    pipeline = family_of(run.candidate).load_pipeline()
    with Image.open(drawn[-1]) as opened:
        grid = np.asarray(opened.convert("RGB"))
    assert grid.shape == (32, 64, 3)
    for number, prompt in enumerate(run.settings.samples.prompts):
        picture = pipeline(
            prompt,
            num_inference_steps=2,
            guidance_scale=4.0,
            max_sequence_length=1,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        apart = np.abs(np.asarray(picture).astype(int) - grid[:, number * 32 : number * 32 + 32]).max()
        assert apart <= 1, f"picture {number} is not the candidate's"
