"""Buckets: every picture in the shape nearest to its own, every batch of one shape, every epoch whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.encode_features.pictures import encode_pictures
from components.validate_data.facts import measure_facts, read_manifest
from components.validate_data.settings import ValidationSettings
from lineage.digests import digest_file
from tests.training.conftest import World
from tests.training.tiny import save_validated
from tests.training.tiny_families import save_flux
from training.encode.features import Features
from training.encode.pictures import nearest
from training.errors import TrainingError
from training.families import family_of
from training.settings import ReplaySettings, TrainingSettings
from training.teach.supervision import Phase
from training.train.draws import batch_samples, bucket_samples
from training.train.model import Batches, SupervisedTransformer

BUCKETS = ((32, 32), (64, 32), (32, 64))
"""Width, height."""


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((500, 480), (32, 32)), ((900, 500), (64, 32)), ((500, 900), (32, 64)), ((64, 64), (32, 32))],
)
def test_a_picture_goes_to_the_bucket_of_the_nearest_shape(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert nearest(size, BUCKETS) == bucket


def test_of_equal_shapes_the_nearest_area_is_taken() -> None:
    assert nearest((70, 70), ((32, 32), (64, 64))) == (64, 64)


def test_every_epoch_of_a_bucket_visits_each_picture_once_and_leftovers_begin_the_next() -> None:
    counts, size, steps = (10, 3, 7), 4, 50
    visits: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        batch = bucket_samples(5, step, steps, size, counts)
        visits.update(batch)
        assert len(batch) == size and len({(i >= 10) + (i >= 13) for _, i in batch}) == 1, "all of one bucket"
    assert set(visits.values()) == {1}
    for index in range(sum(counts)):
        epochs = sorted(epoch for epoch, i in visits if i == index)
        assert epochs == list(range(len(epochs))) and len(epochs) in (9, 10, 11)


def test_one_bucket_is_the_order_without_buckets() -> None:
    for step in range(7):
        assert bucket_samples(5, step, 7, 4, (10,)) == batch_samples(5, step, 4, 10)


def test_a_batchs_samples_do_not_depend_on_the_number_of_steps() -> None:
    for step in range(20):
        assert bucket_samples(5, step, 20, 4, (10, 3)) == bucket_samples(5, step, 90, 4, (10, 3))


@pytest.fixture(scope="module")
def bucketed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSettings, Path]:
    """Features of FLUX for wide, high and square pictures, one of them held sideways by its camera."""
    root = tmp_path_factory.mktemp("buckets")
    rows = []
    for number, size in enumerate([(60, 60), (90, 45), (45, 90), (90, 50), (64, 60), (90, 45)]):
        path = root / f"{number}.png"
        picture, exif = Image.new("RGB", size, (40 * number, 90, 200)), Image.Exif()
        if number == 5:
            exif[0x0112] = 6
        picture.save(path, exif=exif)
        row = world.rows[number] | {"file_name": path.name, "sha256": digest_file(path), "uri": f"file://{path}"}
        rows.append(row | {"split": "train", "phash": "0" * 16})
    base = save_flux(root / "base")
    settings = world.settings(base_model=base, buckets=BUCKETS, steps=12, batch_size=2, max_sequence_length=16)
    validated = save_validated(root / "validated", rows)
    facts = measure_facts(read_manifest(validated), ValidationSettings(suite="none", faces=False))
    pq.write_table(facts, validated / "facts.parquet")
    encode_pictures(settings, validated, root / "features")
    return settings, root / "features"


def test_pictures_are_encoded_in_their_own_shape(bucketed: tuple[TrainingSettings, Path]) -> None:
    settings, folder = bucketed
    features = Features(folder, settings)
    assert sorted(features.info.sizes) == [(2, 32, 32), (2, 32, 64), (2, 64, 32)]
    settings = settings.model_copy(update={"replay": ReplaySettings()})
    family = family_of(settings.base_model)
    batches = Batches(features, settings, family, rank=0, world=1)
    model = SupervisedTransformer(family, features, settings)
    shapes = set()
    for step in range(6):
        batch = batches[step]
        shapes.add(tuple(batch.noisy.shape))
        losses = model(batch, Phase(0.5, detached=False))
        losses.loss.backward()
        assert batch.conditioning["embeddings"].shape == (2, 16, 24) and losses.loss.isfinite()
        assert losses.loss_local is not None
    assert shapes == {(2, 4, 8, 8), (2, 4, 8, 16), (2, 4, 16, 8)}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_size_that_tokens_do_not_divide_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"36 x 32 pixels .* multiple of 8"):
        encode_pictures(world.settings(buckets=((36, 32),)), world.validated, tmp_path)
