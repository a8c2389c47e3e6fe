"""L_structure: similarities of patches as a vision model sees them, and what may be pooled to what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.conftest import World
from tests.training.tiny import save_dinov2
from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.settings import ReplaySettings
from training.teach.structure import StructureHeads, StructureModel, check_grid, layers_at, similarities
from training.teach.supervision import Phase
from training.teach.teacher import Teacher
from training.train.model import Batches, SupervisedTransformer


def test_similarities_are_cosines_of_each_pair_once() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    assert torch.allclose(similarities(tokens), torch.tensor([[0.0, 0.5**0.5, 0.5**0.5]]))


def test_layers_lie_at_the_same_shares_of_any_depth() -> None:
    assert layers_at((0.25, 0.5, 0.75), 12) == [2, 5, 8]
    assert layers_at((0.25, 0.5, 1.0), 2) == [0, 0, 1]


def test_a_dinov2_is_looked_through_layer_by_layer_without_its_class_token(tmp_path: Path) -> None:
    model = StructureModel(save_dinov2(tmp_path / "dino"), (0.5, 1.0), most=4)
    pictures = [Image.effect_noise((40, 40), 60 + n).convert("RGB") for n in range(2)]
    structure = model.structure(pictures)
    assert structure.shape == (2, 2, 120)
    from training.teach.teacher import pixel_tensor

    pixels = pixel_tensor(pictures, [0.5] * 3, [0.5] * 3, 56)
    last = model.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    assert torch.allclose(structure[:, 1], similarities(last), atol=1e-5), "4 x 4 patches of 14 pixels"


def test_finer_patches_are_pooled_to_the_grid_that_was_asked_for(world: World) -> None:
    model = StructureModel(Teacher(world.teacher), (0.5,), most=2)
    assert model.grid == 2, "the teacher's own vision tower, 4 x 4 patches"
    assert model.structure([Image.new("RGB", (32, 32))]).shape == (1, 1, 6)


def test_the_vision_model_gets_no_gradient(tmp_path: Path) -> None:
    model = StructureModel(save_dinov2(tmp_path / "dino"), (1.0,), most=4)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not model.structure([Image.new("RGB", (56, 56))]).requires_grad


def test_heads_learn_to_see_what_the_vision_model_sees() -> None:
    torch.manual_seed(0)
    seen, streams = torch.randn(4, 16, 8), [torch.randn(4, 64, 32)]
    structure = similarities(seen)[:, None]
    heads = StructureHeads(32, 1)
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = heads.losses(streams, (8, 8), structure)
        assert loss.shape == (4,)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    assert losses[-1] < 0.8 * losses[0]
    same = heads.losses(streams, (8, 8), similarities(heads[0](_pooled(streams[0])))[:, None])
    assert torch.allclose(same, torch.zeros(4), atol=1e-5)


def _pooled(tokens: torch.Tensor) -> torch.Tensor:
    planes = tokens.transpose(1, 2).reshape(4, 32, 4, 2, 4, 2)
    return planes.mean(dim=(3, 5)).flatten(2).transpose(1, 2)


def test_the_structure_loss_reaches_the_backbone_after_the_warm_up_only(world: World) -> None:
    settings = world.settings(processes=1, caption_dropout=0.0, replay=ReplaySettings())
    features = Features(world.features, settings)
    model = SupervisedTransformer(family_of(world.base), features, settings)
    batches = Batches(features, settings, family_of(world.base), rank=0, world=1)
    for detached in (True, False):
        model.zero_grad()
        losses = model(batches[0], Phase(0.0, detached, structure=0.1))
        assert losses.loss_structure is not None and losses.loss_local is None
        losses.loss_structure.backward()
        assert model.structure_heads is not None
        assert all(p.grad is not None for p in model.structure_heads.parameters())
        reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
        assert reached is not detached


@pytest.mark.parametrize(("grid", "patches"), [((8, 8), (9, 9)), ((4, 16), (8, 8)), ((16, 4), (8, 8))])
def test_a_grid_that_is_finer_than_the_image_tokens_is_refused(grid: tuple[int, int], patches: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match=f"{grid[0]} x {grid[1]} image tokens, which cannot be pooled"):
        check_grid(grid, patches)


def test_a_vision_model_without_patches_is_refused(world: World) -> None:
    with pytest.raises(TrainingError, match="no patches to compare"):
        StructureModel(world.base / "text_encoder", (1.0,), most=4)
