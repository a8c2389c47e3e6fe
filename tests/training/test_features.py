"""Encoding: equal to what the pipeline computes, the same bytes twice, only of what was validated; what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.encode_features.pictures import encode_pictures
from tests.training.conftest import World
from tests.training.tiny import NO_T5, save_teacher, save_validated
from training.encode.encoders import Encoders
from training.encode.features import Features
from training.encode.info import check_features, features_digest, read_info
from training.encode.pictures import open_picture
from training.errors import TrainingError
from training.settings import SupervisionSettings
from training.teach.teacher import pixel_tensor


def test_features_hold_what_training_reads(world: World) -> None:
    features = Features(world.features, world.settings())
    rows = [0, 5, 23]
    mean, std = features.latents(rows)
    conditioning, target = features.conditioning(rows, [False, True, False]), features.target(rows)
    structure = features.structure(rows)
    assert len(features) == 24 and features.teacher_width == 16
    assert mean.shape == std.shape == (3, 4, 8, 8) and (std > 0).all()
    assert conditioning["embeddings"].shape == (3, 40, 32) and conditioning["pooled"].shape == (3, 24)
    assert target is not None and target.local.shape == (3, 16, 16)
    assert target.caption.shape == (3, 16) and target.entropy.shape == (3,)
    assert structure is not None and structure.shape == (3, 3, 120), "3 layers, pairs of 16 patches"
    assert features.info.captions == 10, "six different ones, three replayed and the empty one, each encoded once"


def test_a_dropped_caption_is_the_empty_one(world: World) -> None:
    features = Features(world.features, world.settings())
    dropped = features.conditioning([3], [True])
    empty = Encoders(world.settings()).encode("text", [""])
    assert torch.allclose(dropped["embeddings"], empty["embeddings"], atol=1e-5)
    assert torch.allclose(dropped["pooled"], empty["pooled"], atol=1e-5)


def test_conditioning_is_what_the_pipeline_computes(world: World) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(world.base, **NO_T5)
    caption = str(world.rows[0]["text"])
    embeddings, _, pooled, _ = pipeline.encode_prompt(
        caption, None, None, do_classifier_free_guidance=False, max_sequence_length=3
    )
    ours = Encoders(world.settings()).encode("text", [caption])
    padded = torch.nn.functional.pad(ours["embeddings"], (0, 40 - 32, 0, 3))
    assert torch.equal(padded, embeddings) and torch.equal(ours["pooled"], pooled)


def test_latents_are_scaled_as_the_pipeline_decodes_them(world: World) -> None:
    encoders = Encoders(world.settings())
    pictures = [open_picture(row).convert("RGB") for row in world.rows[:2]]
    made = encoders.encode("latents", pictures)
    posterior = encoders.pipeline.vae.encode(pixel_tensor(pictures, [0.5] * 3, [0.5] * 3)).latent_dist
    assert torch.allclose(made["mean"] / 1.3 + 0.1, posterior.mean, atol=1e-5)
    assert torch.allclose(made["std"] / 1.3, posterior.std, atol=1e-5)


def test_encoding_twice_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    encode_pictures(world.settings(), world.validated, tmp_path / "again")
    assert features_digest(tmp_path / "again") == features_digest(world.features)


def test_plain_fine_tuning_needs_no_teacher(world: World, tmp_path: Path) -> None:
    settings = world.settings(teacher=None, supervision=SupervisionSettings(enabled=False))
    info = encode_pictures(settings, world.validated, tmp_path / "plain")
    assert "teacher" not in info.made_of
    assert Features(tmp_path / "plain", settings).target([0]) is None


def _changed(row: dict[str, object], folder: Path) -> dict[str, object]:
    copy = folder / str(row["file_name"])
    shutil.copy(str(row["uri"]).removeprefix("file://"), copy)
    return row | {"uri": f"file://{copy}"}


def test_a_changed_picture_is_refused_by_name(world: World, tmp_path: Path) -> None:
    row = _changed(world.rows[3], tmp_path)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / str(row["file_name"]))
    validated = save_validated(tmp_path / "validated", [*world.rows[:3], row])
    with pytest.raises(TrainingError, match=r"0003\.png at .* has changed: its digest was"):
        encode_pictures(world.settings(), validated, tmp_path / "features")
    assert not (tmp_path / "features" / "features.json").exists()


def test_a_missing_picture_is_refused_by_name(world: World, tmp_path: Path) -> None:
    row = _changed(world.rows[3], tmp_path)
    (tmp_path / str(row["file_name"])).unlink()
    validated = save_validated(tmp_path / "validated", [row])
    with pytest.raises(TrainingError, match=r"nothing is at .*0003\.png"):
        encode_pictures(world.settings(), validated, tmp_path / "features")


def test_an_empty_manifest_is_refused(world: World, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "validated").mkdir()
    nothing = pq.read_table(world.validated / "manifest.parquet").slice(0, 0)
    pq.write_table(nothing, tmp_path / "validated" / "manifest.parquet")
    with pytest.raises(TrainingError, match="no pictures to encode"):
        encode_pictures(world.settings(), tmp_path / "validated", tmp_path / "features")


def test_unfinished_features_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"features\.json is missing"):
        Features(tmp_path, world.settings())


REFUSED: list[tuple[str, Callable[[World, Path], dict[str, Any]]]] = [
    ("teacher: tree-sha256:.* -> tree-sha256", lambda world, tmp: {"teacher": save_teacher(tmp / "teacher", seed=9)}),
    (r"structure\.model: ", lambda world, tmp: {"structure_model": save_teacher(tmp / "model", seed=9)}),
    (
        r"structure\.depths: \[.*\] -> \[0\.5\]",
        lambda world, tmp: {"supervision": SupervisionSettings(enabled=True, structure_depths=(0.5,))},
    ),
    (
        r"structure\.grid: 8 -> 3",
        lambda world, tmp: {"supervision": SupervisionSettings(enabled=True, structure_grid=3)},
    ),
    ("cache_precision: fp32 -> fp16", lambda world, tmp: {"cache_precision": "fp16"}),
    (
        "max_sequence_length: 256 -> 128",
        lambda world, tmp: {"max_sequence_length": 128},
    ),
    (
        "are of pictures of 32 x 32 pixels, but .* asks for 64 x 32, 32 x 64",
        lambda world, tmp: {"buckets": ((64, 32), (32, 64))},
    ),
]


@pytest.mark.parametrize(("reproach", "changes"), REFUSED, ids=[reproach for reproach, _ in REFUSED])
def test_features_of_other_settings_are_refused(
    world: World, tmp_path: Path, reproach: str, changes: Callable[[World, Path], dict[str, Any]]
) -> None:
    check_features(world.settings(), world.features)
    with pytest.raises(TrainingError, match=reproach):
        check_features(world.settings(**changes(world, tmp_path)), world.features)


def test_features_of_equal_settings_said_otherwise_are_taken(world: World) -> None:
    check_features(world.settings(max_sequence_length=256, buckets=((32, 32), (64, 32))), world.features)


def test_features_of_buckets_are_refused_where_the_base_models_own_square_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    encode_pictures(world.settings(buckets=((64, 32),)), world.validated, tmp_path / "features")
    with pytest.raises(TrainingError, match=r"are of pictures of 64 x 32 pixels, but .* asks for 32 x 32; encode"):
        check_features(world.settings(), tmp_path / "features")


def test_captions_that_are_read_while_training_may_be_of_another_length(world: World, tmp_path: Path) -> None:
    settings = world.settings(cached=("latents",))
    assert encode_pictures(settings, world.validated, tmp_path / "features").made_of.get("max_sequence_length") is None
    check_features(world.settings(cached=("latents",), max_sequence_length=128), tmp_path / "features")


def test_features_of_another_snapshot_are_refused(world: World) -> None:
    check_features(world.settings(), world.features, read_info(world.features).made_of["snapshot"])
    with pytest.raises(TrainingError, match=r"snapshot: sha256:.* -> sha256:0"):
        check_features(world.settings(), world.features, "sha256:0")


def test_features_without_a_part_that_should_be_cached_are_refused(world: World, tmp_path: Path) -> None:
    encode_pictures(world.settings(cached=("latents",)), world.validated, tmp_path / "features")
    with pytest.raises(TrainingError, match="lack text, teacher, structure, which"):
        check_features(world.settings(cached=("latents", "text", "teacher", "structure")), tmp_path / "features")
