"""A tiny world of real classes: bundle, teacher, pictures, features, and one trained candidate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import save_bundle, save_pictures, save_teacher, save_validated
from training.settings import ReplaySettings, SupervisionSettings, TrainingSettings

REPLAYED = "replayed.txt"


@dataclass(frozen=True)
class World:
    """Where everything is."""

    root: Path
    base: Path
    teacher: Path
    validated: Path
    rows: list[dict[str, Any]]
    features: Path

    def settings(self, **changes: Any) -> TrainingSettings:
        """Settings of a run of a few steps."""
        fields: dict[str, Any] = {
            "base_model": self.base,
            "teacher": self.teacher,
            "steps": 5,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "log_every": 2,
            "caption_dropout": 0.3,
            "replay": ReplaySettings(captions=self.root / REPLAYED, batch_size=4, draws=6),
            "supervision": SupervisionSettings(
                enabled=True, projector_hidden=16, warmup_fraction=0.2, ramp_fraction=0.2
            ),
        }
        return TrainingSettings(**(fields | changes))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Built once: nothing in it is changed by a test."""
    from components.encode_features.pictures import encode_pictures

    root = tmp_path_factory.mktemp("training")
    rows = save_pictures(root / "pictures")
    (root / REPLAYED).write_text("a portrait, beard\na portrait, glasses\na portrait\n", "utf-8")
    made = World(
        root=root,
        base=save_bundle(root / "base"),
        teacher=save_teacher(root / "teacher"),
        validated=save_validated(root / "validated", rows),
        rows=rows,
        features=root / "features",
    )
    encode_pictures(made.settings(), made.validated, made.features)
    return made


@dataclass(frozen=True)
class Trained:
    """A finished run of two DeepSpeed processes."""

    candidate: Path
    curves: Path
    record: Any


@pytest.fixture(scope="session")
def trained(world: World) -> Trained:
    """One run, used by all tests that look at a candidate."""
    from training.launch.launch import fine_tune

    place = world.root / "trained"
    curves = place / "curves.jsonl"
    record = fine_tune(world.settings(), world.features, place / "candidate", curves)
    return Trained(place / "candidate", curves, record)
