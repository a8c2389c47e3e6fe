"""LoRA: what was trained, what diffusers loads beside the base model, and what is merged draw the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lineage.digests import digest_path
from tests.training.conftest import World
from tests.training.tiny_families import save_flux, save_qwen_image, save_sd3
from training.errors import TrainingError
from training.families import family_of
from training.families.family import Family
from training.launch.launch import fine_tune
from training.settings import LoraSettings
from training.train.export import export_candidate
from training.train.lora import add_adapter

SETTINGS = LoraSettings(rank=4, alpha=12)
WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
ADAPTER = Path("lora") / "pytorch_lora_weights.safetensors"


def draw(family: Family, pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    sampling = {"guidance_scale": 2.0, "num_inference_steps": 2, "max_sequence_length": 16, "height": 32, "width": 32}
    more = family.sampling_arguments(sampling, 1)
    return pipeline(["a beard"], generator=torch.Generator().manual_seed(0), output_type="np", **more).images


@pytest.mark.parametrize("save", [save_sd3, save_flux, save_qwen_image])
def test_pictures_are_equal_before_and_after_export(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    family, candidate = family_of(save(tmp_path / "base")), tmp_path / "candidate"
    backbone = family.load_transformer()
    add_adapter(backbone, SETTINGS, seed=0)
    weights = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert weights and all(".lora_" in name for name in weights)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in weights.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    export_candidate(family.path, {n: p.detach() for n, p in weights.items()}, candidate, SETTINGS)
    trained = draw(family, family.load_pipeline(transformer=backbone.eval()))
    merged = draw(family_of(candidate), family_of(candidate).load_pipeline())
    beside = family.load_pipeline()
    untouched = draw(family, beside)
    beside.load_lora_weights(candidate / "lora")
    for pictures in (merged, draw(family, beside)):
        assert abs(pictures - trained).max() < 1e-4 < abs(untouched - trained).max()


def test_the_adapter_says_its_alpha_and_rank(tmp_path: Path) -> None:
    base, digests = save_sd3(tmp_path / "base"), set()
    backbone = family_of(base).load_transformer()
    add_adapter(backbone, SETTINGS, seed=0)
    weights = {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}
    for name in ("one", "two", "three", "four"):
        export_candidate(base, weights, tmp_path / name, SETTINGS)
        digests.add(digest_path(tmp_path / name))
    with safe_open(tmp_path / "one" / ADAPTER, framework="pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert told["transformer.lora_alpha"] == 12 and told["transformer.r"] == 4
    assert told["transformer.target_modules"] == sorted(SETTINGS.target_modules), "in the same order each time"
    assert len(digests) == 1


def test_training_moves_the_adapter_and_nothing_else(world: World, tmp_path: Path) -> None:
    settings = world.settings(method="lora", lora=SETTINGS, gradient_checkpointing=True, ema_decay=0.1)
    candidate = tmp_path / "candidate"
    fine_tune(settings, world.features, candidate, tmp_path / "curves.jsonl")
    before, after = load_file(world.base / WEIGHTS), load_file(candidate / WEIGHTS)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {n for n in before if n.endswith(tuple(f"{module}.weight" for module in SETTINGS.target_modules))}
    idle = {"transformer_blocks.2.attn.add_q_proj.weight"}  # nothing reads what the text stream ends as
    assert before.keys() == after.keys() and moved == wanted - idle
    adapter = load_file(candidate / ADAPTER)
    assert any(tensor.any() for name, tensor in adapter.items() if ".lora_B." in name)
    assert not any("projector" in name for name in adapter)


def test_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    backbone = family_of(save_sd3(tmp_path)).load_transformer()
    with pytest.raises(TrainingError, match=r"names to_qkv, which no linear layer .* attn\.to_q"):
        add_adapter(backbone, LoraSettings(target_modules=("to_q", "to_qkv")), seed=0)


def test_a_layer_that_is_not_linear_is_refused_before_training(tmp_path: Path) -> None:
    backbone = family_of(save_sd3(tmp_path)).load_transformer()
    with pytest.raises(TrainingError, match=r"also names pos_embed\.proj \(Conv2d\), but .* such as trans.*\.proj$"):
        add_adapter(backbone, LoraSettings(target_modules=("proj",)), seed=0)


def test_the_adapter_of_a_base_that_is_a_candidate_is_no_part_of_the_next(tmp_path: Path) -> None:
    base = save_sd3(tmp_path / "base")
    backbone = family_of(base).load_transformer()
    weights = {name: p.detach() for name, p in backbone.named_parameters()}
    export_candidate(base, weights, tmp_path / "plain")
    add_adapter(backbone, SETTINGS, seed=0)
    adapter = {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}
    export_candidate(base, adapter, tmp_path / "adapted", SETTINGS)
    assert (tmp_path / "adapted" / ADAPTER).is_file()
    export_candidate(tmp_path / "adapted", weights, tmp_path / "next")
    assert digest_path(tmp_path / "next") == digest_path(tmp_path / "plain")
