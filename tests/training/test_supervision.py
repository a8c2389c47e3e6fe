"""The supervision: what it looks at, what it pulls towards, and when."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from components.encode_features.pictures import encode_pictures
from examples.avatars.portraits import CORE, VALUES, Portrait
from tests.training.conftest import World
from tests.training.tiny import save_teacher
from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.settings import ReplaySettings, SupervisionSettings
from training.teach.phrases import Phrasebook
from training.teach.structure import pool_tokens
from training.teach.supervision import (
    Phase,
    Tap,
    global_losses,
    local_losses,
    schedule,
)
from training.teach.targets import Target, assign, partners
from training.teach.teacher import Teacher
from training.train.model import Batches, SupervisedTransformer

AVATARS = Path(__file__).parents[2] / "examples" / "avatars"


def centred(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """``features`` (..., d) less ``mean`` (d,), scaled to length one."""
    return functional.normalize(features - mean, dim=-1)


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
    tap = Tap(backbone, None)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 40)
    call = {"pooled_projections": torch.randn(2, 24), "timestep": torch.tensor([1.0, 900.0])}
    tap.arm()
    backbone(hidden_states=latents, encoder_hidden_states=text, **call)
    first = tap._stream
    backbone(hidden_states=2 * latents, encoder_hidden_states=text, **call)
    assert first is not None and tap.take() is first
    assert first.shape == (2, 16, 32), "16 image tokens, not 7 text tokens"
    backbone(hidden_states=latents, encoder_hidden_states=text, **call)
    with pytest.raises(TrainingError, match="did not run"):
        tap.take()


def test_a_tap_beyond_the_last_block_is_refused(world: World) -> None:
    with pytest.raises(TrainingError, match="blocks 0 to 2"):
        Tap(family_of(world.base).load_transformer(), 3)


def test_the_schedule_warms_up_ramps_and_decays_to_zero() -> None:
    settings = SupervisionSettings(
        enabled=True, weight=0.5, warmup_fraction=0.1, ramp_fraction=0.1, decay_end_fraction=0.65
    )
    phases = [schedule(settings, step, 1000) for step in range(1000)]
    assert all(phase == Phase(0.5, detached=True, structure=0.1) for phase in phases[:100])
    assert not any(phase.detached for phase in phases[100:])
    assert phases[100].weight < 0.01 and phases[200].weight == pytest.approx(0.5)
    assert all(a.weight <= b.weight for a, b in pairwise(phases[100:201]))
    assert all(a.weight >= b.weight for a, b in pairwise(phases[200:650]))
    assert all(phase.weight == 0 for phase in phases[650:])


def _model(world: World, caption_dropout: float) -> tuple[SupervisedTransformer, Batches]:
    settings = world.settings(processes=1, caption_dropout=caption_dropout, replay=ReplaySettings())
    features = Features(world.features, settings)
    model = SupervisedTransformer(family_of(world.base), features, settings)
    return model, Batches(features, settings, family_of(world.base), rank=0, world=1)


def test_detached_supervision_teaches_the_projector_alone(world: World) -> None:
    model, batches = _model(world, caption_dropout=0.0)
    for detached in (True, False):
        model.zero_grad()
        losses = model(batches[0], Phase(0.5, detached))
        assert losses.loss_local is not None and losses.loss_global is not None
        (losses.loss_local + losses.loss_global).backward()
        assert model.projector is not None
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector.parameters())
        reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
        assert reached is not detached


def test_dropped_captions_are_masked(world: World) -> None:
    model, batches = _model(world, caption_dropout=1.0)
    losses = model(batches[0], Phase(0.5, detached=False))
    assert losses.loss_local == 0 and losses.loss_global == 0 and losses.loss == losses.loss_flow


def test_without_weight_the_loss_is_the_velocity_loss(world: World) -> None:
    model, batches = _model(world, caption_dropout=0.0)
    losses = model(batches[0], Phase(0.0, detached=False))
    assert losses.loss_local is None and losses.loss is losses.loss_flow


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


def test_a_patch_is_assigned_to_the_phrase_that_it_shows() -> None:
    phrases = torch.eye(3)
    assignment = assign(patches=phrases[[2, 0]], phrases=phrases, temperature=0.01)
    assert assignment.argmax(-1).tolist() == [2, 0]
    assert torch.allclose(assignment @ phrases, phrases[[2, 0]], atol=1e-6)


def test_neither_the_target_nor_what_patches_are_assigned_by_is_centred(world: World) -> None:
    features = Features(world.features, world.settings())
    target, teacher = features.target([3]), Teacher(world.teacher)
    book = Phrasebook.of(["", *(row["text"] for row in world.rows)])
    caption = world.rows[3]["text"]
    rows = book.rows(["phrase", "clause"])
    number = ["", *dict.fromkeys(row["text"] for row in world.rows)].index(caption)
    spoken = teacher.text_features(book.strings)
    said = spoken[rows[number]]
    patches = teacher.patch_features(teacher.prepare([Image.open(world.root / "pictures" / "0003.png")]))[0]
    raw = [functional.normalize(tensor, dim=-1) for tensor in (patches, said)]
    assignment = torch.softmax(raw[0] @ raw[1].T / teacher.temperature, dim=-1)
    mean = spoken[sorted({n for row in rows for n in row[1:]})].mean(dim=0)
    assert target is not None
    assert torch.allclose(target.local[0], assignment @ raw[1], atol=2e-3), "patches are kept in fp16"
    other = torch.softmax(centred(patches, patches.mean(0)) @ centred(said, mean).T / teacher.temperature, dim=-1)
    assert (other - assignment).abs().max() > 0.01
    assert (assignment @ centred(said, mean) - target.local[0]).abs().max() > 0.01


def _targets(world: World, **changes: object) -> list[Target]:
    settings = world.settings(supervision=SupervisionSettings(enabled=True, **changes))  # type: ignore[arg-type]
    features = Features(world.features, settings)
    target = features.target(range(24))
    assert target is not None
    return [target]


def test_the_vision_target_is_the_patches_themselves_with_no_text_in_it(world: World) -> None:
    (target,) = _targets(world, target="vision")
    teacher = Teacher(world.teacher)
    pictures = [Image.open(world.root / "pictures" / f"{number:04d}.png") for number in range(24)]
    patches = teacher.patch_features(teacher.prepare(pictures))
    assert torch.allclose(target.local, functional.normalize(patches, dim=-1), atol=2e-2), "kept in fp16"
    assert torch.allclose(target.caption.norm(dim=-1), torch.ones(24), atol=1e-5)
    assert (target.entropy == 0).all() and (target.variance > 0).all()


def test_shuffled_text_gives_every_sample_the_text_of_another_and_leaves_the_conditioning(world: World) -> None:
    settings = world.settings(supervision=SupervisionSettings(enabled=True, target="shuffled-text"))
    right, wrong = Features(world.features, world.settings()), Features(world.features, settings)
    one, other = right.target(range(24)), wrong.target(range(24))
    read, also = (some.conditioning(range(24), [False] * 24) for some in (right, wrong))
    assert all(torch.equal(read[name], also[name]) for name in read)
    assert one is not None and other is not None
    assert torch.equal(other.caption, one.caption[torch.from_numpy(partners(settings.seed, 24))])
    assert sorted(partners(3, 10).tolist()) == list(range(10)) and not (partners(3, 10) == range(10)).any()


def test_granularity_decides_what_the_patches_are_aligned_with(world: World) -> None:
    (phrases,), (caption,) = _targets(world, granularity="phrase"), _targets(world, granularity="caption")
    assert not torch.allclose(phrases.local, caption.local)
    assert torch.equal(phrases.caption, caption.caption)
    assert (phrases.entropy > caption.entropy).all(), "more parts to decide between"
    book = Phrasebook.of(["", "a face with glasses, red shirt"])
    parts = book.rows(["phrase", "clause"])[1]
    assert [book.strings[row] for row in parts] == ["", "a face", "with glasses", "red shirt", "a face with glasses"]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"local_weight": 0}, "local"), ({"global_weight": 0}, "caption"), ({"structure_weight": 0}, "structure")],
)
def test_every_term_can_be_left_out(world: World, changes: dict[str, float], missing: str) -> None:
    supervision = SupervisionSettings(enabled=True, **changes)  # type: ignore[arg-type]
    settings = world.settings(processes=1, caption_dropout=0.0, replay=ReplaySettings(), supervision=supervision)
    features, family = Features(world.features, settings), family_of(world.base)
    model = SupervisedTransformer(family, features, settings)
    batch = Batches(features, settings, family, rank=0, world=1)[0]
    losses = model(batch, schedule(settings.supervision, 0, 10))
    terms = {
        "local": (0.5, losses.loss_local),
        "caption": (0.25, losses.loss_global),
        "structure": (0.1, losses.loss_structure),
    }
    assert [name for name, (_, loss) in terms.items() if loss is None] == [missing]
    whole = losses.loss_flow + sum(weight * loss for weight, loss in terms.values() if loss is not None)
    assert torch.allclose(losses.loss, whole) and losses.target_entropy is not None and losses.target_entropy > 0


def test_without_decay_the_weight_stays() -> None:
    phases = [schedule(SupervisionSettings(enabled=True, decay=False), step, 100) for step in range(100)]
    assert all(phase == Phase(0.5, detached=False, structure=0.1) for phase in phases[10:])


def test_a_teacher_with_a_finer_grid_than_the_image_tokens_is_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(teacher=save_teacher(tmp_path / "teacher", patch_size=4))
    with pytest.raises(TrainingError, match="4 x 4 image tokens, which cannot be pooled to the 8 x 8 patches"):
        encode_pictures(settings, world.validated, tmp_path / "features")
    assert not list((tmp_path / "features").iterdir())


@dataclass(frozen=True)
class Seen:
    """What avatars' teacher sees in random portraits."""

    portraits: list[Portrait]
    teacher: Teacher
    patches: torch.Tensor
    """V̂: (96, 64, d)."""
    phrases: torch.Tensor
    """Ŝ of the phrasebook."""
    book: Phrasebook
    rows: list[list[int]]


@pytest.fixture(scope="module")
def seen() -> Seen:
    if not (AVATARS / "models" / "teacher" / "config.json").is_file():
        pytest.skip("avatars has no teacher")
    chance = random.Random(5)
    portraits = [
        Portrait(*(chance.choice(VALUES[name]) for name in CORE), chance.random() < 0.5, chance.random() < 0.5)
        for _ in range(96)
    ]
    teacher = Teacher(AVATARS / "models" / "teacher")
    patches = teacher.patch_features(teacher.prepare([portrait.draw() for portrait in portraits]))
    captions = [portrait.caption() for portrait in portraits]
    book = Phrasebook.of(captions)
    rows = book.rows(["phrase", "clause"])
    spoken = teacher.text_features(book.strings)
    phrases = centred(spoken, spoken[sorted({number for row in rows for number in row[1:]})].mean(dim=0))
    return Seen(portraits, teacher, centred(patches, patches.mean(dim=(0, 1))), phrases, book, rows)


def test_a_matched_caption_has_a_lower_local_loss_than_a_shuffled_one(seen: Seen) -> None:
    def loss(captions: list[int]) -> float:
        targets = [
            assign(picture, said := seen.phrases[seen.rows[caption]], seen.teacher.temperature) @ said
            for picture, caption in zip(seen.patches, captions, strict=True)
        ]
        return float(local_losses(seen.patches, torch.stack(targets)).mean())

    matched = loss(list(range(96)))
    assert all(matched < loss([(row + shift) % 96 for row in range(96)]) for shift in (1, 7, 31))


def test_the_word_glasses_is_seen_where_glasses_are_more_than_chance_would_have_it(seen: Seen) -> None:
    glasses, inside, everywhere = seen.book.strings.index("glasses"), [], []
    for portrait, patches, rows in zip(seen.portraits, seen.patches, seen.rows, strict=True):
        if not portrait.glasses:
            continue
        assignment = assign(patches, seen.phrases[rows], seen.teacher.temperature)
        pictures = [np.asarray(p.draw(), float) for p in (portrait, replace(portrait, glasses=False))]
        mask = np.abs(pictures[0] - pictures[1]).sum(-1).reshape(8, 8, 8, 8).sum(axis=(1, 3)).flatten() > 0
        mass = assignment[:, rows.index(glasses)].numpy()
        inside.append(mass[mask].mean())
        everywhere.append(mass.mean())
    ahead = np.array(inside) - np.array(everywhere)
    assert len(ahead) > 30 and ahead.mean() > 4 * ahead.std() / np.sqrt(len(ahead)), (inside, everywhere)
