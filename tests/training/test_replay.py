"""Replay: captions on noise, on which the image stream is held to the base model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import World
from tests.training.forked import Run, run_all
from tests.training.tiny_families import save_flux, save_qwen_image, save_sd3_with_t5
from training.encode.captions import replayed_captions
from training.encode.features import Features
from training.encode.info import check_features, read_info
from training.errors import TrainingError
from training.families import family_of
from training.settings import LoraSettings, ReplaySettings, SupervisionSettings, TrainingSettings
from training.teach.supervision import Phase
from training.train.curves import read_points
from training.train.draws import draw_replay, replay_batch
from training.train.model import Batches, Losses, Replayed, SupervisedTransformer

OFF = SupervisionSettings()
NOTHING = Phase(0.0, detached=False)


def test_every_draw_is_replayed_once_before_any_is_again() -> None:
    steps = [replay_batch(7, step, 4, 6) for step in range(6)]
    flat = [number for step in steps for number in step]
    for epoch in range(4):
        assert sorted(flat[epoch * 6 : epoch * 6 + 6]) == list(range(6))
    assert flat[:6] != flat[6:12], "in another order each time"
    assert steps == [replay_batch(7, step, 4, 6) for step in range(6)] != [replay_batch(8, s, 4, 6) for s in range(6)]


def test_draws_are_fixed_and_nearly_pure_noise() -> None:
    draws = [draw_replay(3, number, 5, 0.97, (4, 8, 8)) for number in range(200)]
    assert {draw.caption for draw in draws} == set(range(5))
    assert all(0.97 <= draw.sigma <= 1 for draw in draws) and max(d.sigma for d in draws) > 0.99
    again = draw_replay(3, 11, 5, 0.97, (4, 8, 8))
    assert (again.noise == draws[11].noise).all() and not (draws[12].noise == draws[11].noise).any()


def batches_of(world: World, settings: TrainingSettings, rank: int = 0, of: int = 1) -> Batches:
    return Batches(Features(world.features, settings), settings, family_of(settings.base_model), rank, of)


def test_processes_share_the_replayed_draws_of_a_step(world: World) -> None:
    settings = world.settings(supervision=OFF)
    whole = batches_of(world, settings)[3].replayed
    halves = [batches_of(world, settings, rank, 2)[3].replayed for rank in range(2)]
    assert whole is not None and all(half is not None for half in halves)
    assert torch.equal(torch.cat([half.noisy for half in halves if half]), whole.noisy)
    assert torch.equal(torch.cat([half.timesteps for half in halves if half]), whole.timesteps)


def test_what_is_held_is_the_base_models_image_stream(world: World) -> None:
    """Read by a plain forward pass of diffusers' transformer, hooked from outside."""
    settings = world.settings(supervision=OFF)
    batches = batches_of(world, settings)
    model = SupervisedTransformer(batches.family, batches.features, settings)
    replayed = batches.replay(range(4))
    with torch.no_grad():
        mine = model(replayed, NOTHING)
    plain, seen = batches.family.load_transformer(), []
    depth = len(plain.transformer_blocks)
    plain.transformer_blocks[round(5 * depth / 6) - 1].register_forward_hook(
        lambda block, inputs, output: seen.append(output[1])
    )
    with torch.no_grad():
        plain(
            hidden_states=replayed.noisy,
            timestep=replayed.timesteps,
            encoder_hidden_states=replayed.conditioning["embeddings"],
            pooled_projections=replayed.conditioning["pooled"],
        )
    assert torch.allclose(mine, seen[0], atol=1e-6) and mine.shape[0] == 4


def test_the_loss_is_one_less_the_cosine_and_pulls_back(world: World) -> None:
    settings = world.settings(supervision=OFF)
    batches = batches_of(world, settings)
    model = SupervisedTransformer(batches.family, batches.features, settings)
    batch = batches[0]
    assert batch.replayed is not None
    with pytest.raises(TrainingError, match=r"Batches\.held"):
        model(batch, NOTHING)
    with torch.no_grad():
        own = model(batch.replayed, NOTHING)
    same = model(batch._replace(replayed=batch.replayed._replace(held=own)), NOTHING)
    assert float(same.loss_replay.detach()) == pytest.approx(0, abs=1e-5), "the base model is where it is held"
    assert float(same.loss.detach()) == pytest.approx(float(same.loss_flow.detach()), abs=1e-4)
    opposite = model(batch._replace(replayed=batch.replayed._replace(held=-own)), NOTHING)
    assert float(opposite.loss_replay.detach()) == pytest.approx(2, abs=1e-5)
    assert float((opposite.loss - opposite.loss_flow).detach()) == pytest.approx(settings.replay.weight * 2, abs=1e-4)
    opposite.loss_replay.backward()
    blocks = model.backbone.transformer_blocks
    assert blocks[0].attn.to_q.weight.grad.abs().sum() > 0
    last = blocks[-1].attn.to_q.weight.grad
    assert last is None or not last.abs().sum(), "blocks after the tapped one are left alone"


def drift(world: World, settings: TrainingSettings, candidate: Path) -> float:
    """How far a candidate's stream on the replayed draws is from the base model's: one less the cosine."""
    batches = batches_of(world, settings)
    streams = []
    for bundle in (settings.base_model, candidate):
        told = settings.model_copy(update={"base_model": bundle, "method": "full"})
        model = SupervisedTransformer(family_of(bundle), batches.features, told)
        with torch.no_grad():
            streams.append(model(batches.replay(range(6)), NOTHING))
    return 1 - float(torch.nn.functional.cosine_similarity(*streams, dim=-1).mean())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_held_training_drifts_less(world: World, tmp_path: Path, method: str) -> None:
    common: dict[str, Any] = {"supervision": OFF, "steps": 30, "processes": 1, "log_every": 1, "method": method}
    if method == "lora":
        common |= {"lora": LoraSettings(rank=4, alpha=16), "learning_rate": 1e-2}
    held = world.settings(**common, replay=ReplaySettings(captions=world.root / "replayed.txt", batch_size=4, draws=6))
    free = world.settings(**common, replay=ReplaySettings())
    runs = [Run(settings, world.features, tmp_path / str(n)) for n, settings in enumerate((held, free))]
    assert run_all(*runs) == [[0], [0]]
    points = read_points(runs[0].curves)
    assert points[0].loss_replay == pytest.approx(0, abs=1e-5), "nothing has moved before the first step"
    assert not list(runs[0].place.glob("*.held")), "what the processes shared has no name any more"
    assert all(point.loss_replay is None for point in read_points(runs[1].curves))
    assert drift(world, held, runs[0].candidate) < 0.5 * drift(world, held, runs[1].candidate)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("save", [save_sd3_with_t5, save_flux, save_qwen_image])
def test_every_family_can_be_held(save: Any, method: Any, tmp_path: Path, world: World) -> None:
    from components.encode_features.pictures import encode_pictures

    base = save(tmp_path / "base")
    settings = TrainingSettings(
        base_model=base,
        batch_size=2,
        processes=1,
        max_sequence_length=12,
        buckets=((32, 32),),
        method=method,
        lora=LoraSettings(rank=4, alpha=16),
        replay=ReplaySettings(captions=world.root / "replayed.txt", batch_size=2, draws=4),
    )
    encode_pictures(settings, world.validated, tmp_path / "features")
    features, family = Features(tmp_path / "features", settings), family_of(base)
    batches = Batches(features, settings, family, 0, 1)
    model = SupervisedTransformer(family, features, settings)
    batch = batches[0]
    assert isinstance(batch.replayed, Replayed)
    with torch.no_grad():
        stream = model(batch.replayed, NOTHING)
    assert isinstance(stream, Tensor) and stream.shape[:2] == (2, family.grid(*batch.noisy.shape[-2:])[0] ** 2)
    losses = model(batch._replace(replayed=batch.replayed._replace(held=stream)), NOTHING)
    assert (
        isinstance(losses, Losses) and losses.loss_replay is not None and abs(float(losses.loss_replay.detach())) < 1e-5
    )
    held = batch._replace(replayed=batch.replayed._replace(held=stream))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    course = []
    for _ in range(4):
        losses = model(held, NOTHING)
        course.append((float(losses.loss_flow.detach()), float(losses.loss_replay.detach())))
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert course[-1][0] < course[0][0], "it learns the pictures"
    assert 0 < course[-1][1] < 0.5, "and stays near what it is held to"


def test_captions_are_read_from_text_and_from_snapshots(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("one\n\n two \none\n", "utf-8")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert replayed_captions(tmp_path / "some.txt") == ["one", "two"]
    assert replayed_captions(tmp_path / "metadata.jsonl") == ["one", "two"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    assert replayed_captions(tmp_path / "manifest.parquet") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", "\n", "has a row without a caption, or none at all"),
        ("bad.jsonl", '{"file_name": "a.png"}\n', r"cannot be read: KeyError\('text'\); give a text file"),
        ("bad.jsonl", '{"text": 3}\n', "has a row without a caption"),
        ("bad.jsonl", "no json\n", "cannot be read"),
        ("bad.parquet", "no table", "cannot be read"),
    ],
)
def test_captions_that_are_none_are_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(TrainingError, match=reason):
        replayed_captions(tmp_path / name)


def test_features_with_other_replayed_captions_are_refused(world: World, tmp_path: Path) -> None:
    assert read_info(world.features).captions > 6, "the replayed ones are encoded too"
    (tmp_path / "other.txt").write_text("a portrait\n", "utf-8")
    settings = world.settings(replay=ReplaySettings(captions=tmp_path / "other.txt", batch_size=4, draws=6))
    with pytest.raises(TrainingError, match=r"replay: .*; encode them again"):
        check_features(settings, world.features)
    check_features(world.settings(replay=ReplaySettings()), world.features)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"replay": {"captions": "/c.txt", "batch_size": 3}}, "replay.batch_size 3 is not a multiple of processes"),
        (
            {"replay": {"captions": "/c.txt"}, "null_tokens": (1, 4)},
            r"null_tokens \(1, 4\) is a range, and replay holds",
        ),
        ({"replay": {"captions": "/c.txt", "lowest_sigma": 1.5}}, "less than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainingSettings(base_model=Path("/base"), **changes)


def test_a_tap_that_the_model_lacks_is_named(world: World) -> None:
    replay = ReplaySettings(captions=world.root / "replayed.txt", batch_size=4, draws=6, tap=99)
    settings = world.settings(supervision=OFF, replay=replay)
    with pytest.raises(TrainingError, match=r"replay\.tap is 99, but the base model has blocks 0 to"):
        SupervisedTransformer(family_of(settings.base_model), Features(world.features, settings), settings)


def test_replay_leaves_nothing_in_the_candidate(trained: Any, world: World) -> None:
    weights = Path("transformer") / "diffusion_pytorch_model.safetensors"
    assert load_file(trained.candidate / weights).keys() == load_file(world.base / weights).keys()
