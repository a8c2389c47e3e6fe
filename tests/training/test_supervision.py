"""The supervision: what it looks at, what it pulls towards, and when."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.conftest import World
from tests.training.tiny import save_teacher
from training.errors import TrainingError
from training.families import family_of
from training.features import Features
from training.model import Batches, SupervisedTransformer
from training.phrases import Phrasebook
from training.settings import SupervisionSettings
from training.structure import pool_tokens
from training.supervision import (
    Phase,
    Tap,
    default_tap,
    global_losses,
    local_losses,
    schedule,
)
from training.targets import align, centred
from training.teacher import Teacher

AVATARS = Path(__file__).parents[2] / "examples" / "avatars"


def test_losses_have_one_value_a_sample_and_are_zero_where_features_agree() -> None:
    target, caption = torch.randn(3, 16, 8), torch.randn(3, 8)
    assert local_losses(2 * target, target).shape == global_losses(target, caption).shape == (3,)
    assert torch.allclose(local_losses(2 * target, target), torch.zeros(3), atol=1e-6)
    assert torch.allclose(local_losses(-target, target), torch.full((3,), 2.0), atol=1e-6)
    assert torch.allclose(global_losses(caption[:, None].expand(3, 16, 8), caption), torch.zeros(3), atol=1e-6)


def test_tokens_are_pooled_by_area_with_rows_and_columns_kept() -> None:
    tokens = torch.arange(4 * 8, dtype=torch.float32).reshape(1, 32, 1)
    pooled = pool_tokens(tokens, (4, 8), (2, 4))
    assert pooled.shape == (1, 8, 1)
    assert pooled[0, 0, 0] == torch.tensor([0.0, 1, 8, 9]).mean()
    assert pooled[0, -1, 0] == torch.tensor([22.0, 23, 30, 31]).mean()


def test_the_image_stream_is_tapped_and_its_first_firing_counts(world: World) -> None:
    backbone = family_of(world.base).load_transformer()
    tap = Tap(backbone, default_tap(3))
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 40)
    call = {"pooled_projections": torch.randn(2, 24), "timestep": torch.tensor([1.0, 900.0])}
    backbone(hidden_states=latents, encoder_hidden_states=text, **call)
    first = tap.stream()
    assert first.shape == (2, 16, 32), "16 image tokens, not 7 text tokens"
    backbone(hidden_states=2 * latents, encoder_hidden_states=text, **call)
    assert tap.stream() is first
    tap.clear()
    with pytest.raises(TrainingError, match="did not run"):
        tap.stream()


def test_a_tap_beyond_the_last_block_is_refused(world: World) -> None:
    with pytest.raises(TrainingError, match="joint blocks 0 to 2"):
        Tap(family_of(world.base).load_transformer(), 3)


def test_the_schedule_warms_up_ramps_and_decays_to_zero() -> None:
    settings = SupervisionSettings(weight=0.5, warmup_fraction=0.1, ramp_fraction=0.1, decay_end_fraction=0.65)
    phases = [schedule(settings, step, 1000) for step in range(1000)]
    assert all(phase == Phase(0.5, detached=True, structure=0.1) for phase in phases[:100])
    assert not any(phase.detached for phase in phases[100:])
    assert phases[100].weight < 0.01 and phases[200].weight == pytest.approx(0.5)
    assert all(a.weight <= b.weight for a, b in pairwise(phases[100:201]))
    assert all(a.weight >= b.weight for a, b in pairwise(phases[200:650]))
    assert all(phase.weight == 0 for phase in phases[650:])


def _model(world: World, caption_dropout: float) -> tuple[SupervisedTransformer, Batches]:
    settings = world.settings(processes=1, caption_dropout=caption_dropout)
    features = Features(world.features, settings)
    model = SupervisedTransformer(family_of(world.base), features, settings)
    return model, Batches(features, settings, family_of(world.base), rank=0, world=1)


def test_detached_supervision_teaches_the_projector_alone(world: World) -> None:
    model, batches = _model(world, caption_dropout=0.0)
    for detached in (True, False):
        model.zero_grad()
        losses = model(batches[0], Phase(0.5, detached))
        assert losses.local is not None and losses.caption is not None
        (losses.local + losses.caption).backward()
        assert model.projector is not None
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector.parameters())
        reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
        assert reached is not detached


def test_dropped_captions_are_masked(world: World) -> None:
    model, batches = _model(world, caption_dropout=1.0)
    losses = model(batches[0], Phase(0.5, detached=False))
    assert losses.local == 0 and losses.caption == 0 and losses.total == losses.flow


def test_without_weight_the_loss_is_the_velocity_loss(world: World) -> None:
    model, batches = _model(world, caption_dropout=0.0)
    losses = model(batches[0], Phase(0.0, detached=False))
    assert losses.local is None and losses.total is losses.flow


def test_a_patch_alone_through_the_pooling_head_is_its_value_path(world: World) -> None:
    teacher = Teacher(world.teacher)
    pixels = teacher.prepare([Image.open(world.root / "pictures" / "0000.png")])
    patches = teacher.patch_features(pixels)
    vision = teacher.model.vision_model
    hidden = vision(pixel_values=pixels).last_hidden_state
    alone = torch.stack([vision.head(hidden[:, place : place + 1]) for place in range(16)], dim=1)
    assert patches.shape == (1, 16, 16)
    assert torch.allclose(patches, alone, atol=1e-5)


def test_the_teacher_gets_no_gradient(world: World) -> None:
    teacher = Teacher(world.teacher)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with torch.enable_grad():
        assert not teacher.text_features(["a beard"]).requires_grad
        assert not teacher.patch_features(torch.zeros(1, 3, 32, 32)).requires_grad


def test_a_teacher_that_pads_on_the_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="padding on the right"):
        Teacher(save_teacher(tmp_path, padding_side="left"))


def test_the_target_is_the_phrase_that_the_patch_shows() -> None:
    phrases = torch.eye(3)
    target, assignment = align(patches=phrases[[2, 0]], phrases=phrases, temperature=0.01)
    assert assignment.argmax(-1).tolist() == [2, 0]
    assert torch.allclose(target, phrases[[2, 0]], atol=1e-6)


@pytest.mark.skipif(not (AVATARS / "models" / "teacher" / "config.json").is_file(), reason="avatars has no teacher")
def test_a_matched_caption_has_a_lower_local_loss_than_a_shuffled_one() -> None:
    from examples.avatars.portraits import CORE, VALUES, Portrait

    chance = random.Random(5)
    portraits = [
        Portrait(*(chance.choice(VALUES[name]) for name in CORE), chance.random() < 0.5, chance.random() < 0.5)
        for _ in range(96)
    ]
    teacher = Teacher(AVATARS / "models" / "teacher")
    patches = teacher.patch_features(teacher.prepare([portrait.draw() for portrait in portraits]))
    patches = centred(patches, patches.mean(dim=(0, 1)))
    book = Phrasebook.of([portrait.caption() for portrait in portraits])
    rows = book.rows([portrait.caption() for portrait in portraits], ["phrase", "clause"])
    spoken = teacher.text_features(book.strings)
    phrases = centred(spoken, spoken[sorted({number for row in rows for number in row[1:]})].mean(dim=0))

    def loss(captions: list[int]) -> float:
        targets = [
            align(picture, phrases[rows[caption]], teacher.temperature)[0]
            for picture, caption in zip(patches, captions, strict=True)
        ]
        return float(local_losses(patches, torch.stack(targets)).mean())

    matched = loss(list(range(96)))
    assert all(matched < loss([(row + shift) % 96 for row in range(96)]) for shift in (1, 7, 31))
