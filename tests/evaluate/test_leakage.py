"""A scorer that judges by a network the candidate was trained to please is found, whatever it is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.evaluate.scorers.sets import Kid
from pipelines.configuration import read_configuration
from tests.evaluate.conftest import judge_models, settings
from tests.evaluate.test_scorers import save_dinov2
from tests.runs import AVATARS
from training.errors import TrainingError
from training.teach import leakage
from training.teach.leakage import ALIKE, likeness, probe_pictures, refuse_leakage, shared_tensors, teacher_features

TEACHER = AVATARS / "models" / "teacher"


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.inner.{place}": value for place, value in enumerate(weights.values())}


def cast(kind: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: value.to(kind) for name, value in renamed(weights).items()}


def one_of_them(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    largest = max(weights.values(), key=lambda value: value.numel())
    return {"head": torch.randn(500, 500), "trunk": largest.reshape(-1)}


@pytest.mark.parametrize(
    "disguise",
    [renamed, cast(torch.bfloat16), cast(torch.float16), cast(torch.float64), one_of_them],
    ids=["renamed", "bf16", "fp16", "fp64", "one tensor, reshaped"],
)
def test_the_teachers_weights_are_found_in_disguise(
    disguise: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    place = tmp_path / "deep" / "inside"
    place.mkdir(parents=True)
    save_file(disguise(load_file(TEACHER / "model.safetensors")), place / "judge.safetensors")
    assert shared_tensors(tmp_path, TEACHER)
    evaluation = {"scorers": [{"scorer": "judge", "weights": str(tmp_path)}]}
    for key in ("teacher", "structure_model"):
        with pytest.raises(TrainingError, match=rf"judge: .* as named by training.{key}; choose another scorer"):
            refuse_leakage(evaluation, {key: str(TEACHER), "base_model": "x"})
    refuse_leakage({**evaluation, "allow_teacher_leakage": True}, {"teacher": str(TEACHER)})
    refuse_leakage(evaluation, {"teacher": None, "base_model": str(TEACHER)})


def test_other_weights_of_the_same_shapes_are_no_leak(tmp_path: Path) -> None:
    weights = load_file(TEACHER / "model.safetensors")
    torch.manual_seed(0)
    others = {
        name: (value if value.numel() < 4096 else value + value.std() * torch.randn_like(value))
        for name, value in weights.items()
    }
    others |= {"ones": torch.ones(10_000), "norm": 1 + 0.002 * torch.randn(8192)}
    save_file(others, tmp_path / "a.safetensors")
    save_file({"ones": torch.ones(10_000), "norm": 1 + 0.002 * torch.randn(8192)}, tmp_path / "b.safetensors")
    assert shared_tensors(tmp_path / "a.safetensors", TEACHER) == []
    assert shared_tensors(tmp_path / "b.safetensors", tmp_path / "a.safetensors") == []


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_values_are_read_without_torch_as_torch_reads_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = 3 * torch.randn(64, 128)
    weights[0, :6] = torch.tensor([0.0, -0.0, 448.0, -448.0, 2.0**-9, 2.0**-6])
    weights = weights.to(getattr(torch, kind))
    save_file({"weights": weights}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    ((name, size, sketch),) = leakage._tensors(tmp_path / "one.safetensors")
    assert (name, size) == ("weights", weights.numel())
    expected = weights.flatten().float().bfloat16().float().numpy()
    places = np.random.default_rng(size).integers(size, size=leakage.POSITIONS)
    assert np.array_equal(sketch, expected[places])


def test_weights_that_cannot_be_looked_into_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "judge.pth")
    (found,) = shared_tensors(tmp_path, TEACHER)
    assert "judge.pth cannot be compared" in found


def test_a_network_that_sees_the_same_is_found_by_its_features(
    tmp_path: Path, models: dict[str, Path], small_set: Path
) -> None:
    """The teacher's weights with every value moved by more than rounding: tensors no longer agree."""
    teacher = save_dinov2(tmp_path / "teacher", seed=3)
    judge = save_dinov2(tmp_path / "judge", seed=3)
    weights = load_file(judge / "model.safetensors")
    torch.manual_seed(0)
    moved = {name: value * (1 + 0.03 * torch.randn_like(value)) for name, value in weights.items()}
    save_file(moved, judge / "model.safetensors", metadata={"format": "pt"})
    assert shared_tensors(judge, teacher) == []
    asked, training = {"scorer": "kid", "weights": str(judge)}, {"teacher": str(teacher)}
    facts = judge_models(settings(small_set, asked), models, tmp_path / "scores", tmp_path / "store", training)
    assert "kid sees what training.teacher sees in 48 probe pictures" in facts["unusable"]
    allowed = settings(small_set, asked, allow_teacher_leakage=True)
    facts = judge_models(allowed, models, tmp_path / "scores", tmp_path / "store", training)
    assert "unusable" not in facts
    assert facts["leakage"]["allowed"] and "kid sees" in facts["leakage"]["found"][0]
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["leakage"] == facts["leakage"]


def test_likeness_ignores_scale_and_rotation_and_tells_networks_apart(tmp_path: Path) -> None:
    probes = probe_pictures()
    one, other = (Kid(str(save_dinov2(tmp_path / str(seed), seed))).features(probes) for seed in (1, 2))
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    assert likeness(one, 7 * one @ turned + 3) == pytest.approx(1)
    assert likeness(one, other) < ALIKE - 0.02
    assert likeness(one, np.zeros_like(one)) == 0
    assert any(likeness(one, seen) > ALIKE for seen in teacher_features(tmp_path / "1", probes))


def test_the_shipped_defaults_are_disjoint(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    configuration = read_configuration(AVATARS / "retrain.yaml")
    sections: dict[str, Any] = configuration.arguments()
    # The shipped teacher is there for those who supervise with it.
    sections["training"] |= {"teacher": str(AVATARS / "models" / "teacher"), "supervision": {"enabled": True}}
    assert len(sections["evaluation"]["scorers"]) >= 5
    assert not sections["evaluation"]["allow_teacher_leakage"]
    refuse_leakage(sections["evaluation"], sections["training"])
    # Memorisation wants training pictures, and reads realism's network.
    scorers = [s for s in sections["evaluation"]["scorers"] if s["scorer"] != "avatars-memorisation"]
    asked = settings(small_set, *scorers)
    facts = judge_models(asked, models, tmp_path / "scores", tmp_path / "store", sections["training"])
    assert facts.get("unusable") is None and facts["leakage"]["found"] == []
    assert yaml.safe_load((AVATARS / "retrain.yaml").read_text())["evaluation"].get("allow_teacher_leakage") is None
