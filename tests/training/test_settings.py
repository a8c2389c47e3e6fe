"""Settings say what is wrong before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.settings import TrainingSettings
from training.teach.phrases import split_phrases

BASE = {"base_model": Path("/base"), "teacher": Path("/teacher")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 3}, "not a multiple of processes"),
        ({"null_tokens": (5, 2)}, "is not a range"),
        ({"teacher": None, "supervision": {"enabled": True}}, "teacher is missing"),
        ({"stepz": 3}, "Extra inputs are not permitted"),
        ({"supervision": {"warmup_fraction": 0.5, "ramp_fraction": 0.4}}, "end after decay_end_fraction"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings.model_validate(BASE | fields)


def test_a_dump_has_no_nulls_and_reads_back() -> None:
    settings = TrainingSettings(base_model=Path("/base"))
    dumped = settings.model_dump(mode="json")
    assert "teacher" not in dumped and "tap" not in dumped["supervision"]
    assert TrainingSettings.model_validate(dumped) == settings


def test_settings_import_nothing_heavy() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'mlflow', 'kfp'}"
    code = f"import sys, training.settings, training.launch.launch; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("", []),
        ("a portrait, red hair, glasses", ["a portrait", "red hair", "glasses"]),
        ("A man with a beard and glasses, wearing blue", ["A man", "with a beard", "glasses", "wearing blue"]),
        ("a face with no beard, without glasses", ["a face", "with no beard", "without glasses"]),
        ("smiling, smiling; smiling.", ["smiling"]),
        ("sandy withers", ["sandy withers"]),
    ],
)
def test_captions_fall_into_phrases(caption: str, phrases: list[str]) -> None:
    assert split_phrases(caption) == phrases


def test_the_learning_rate_rises_then_stays_or_falls_to_nothing() -> None:
    from training.train.loop import learning_rate

    given = TrainingSettings(base_model=Path("/base"), steps=8, warmup_steps=3, learning_rate=1.0)
    assert [learning_rate(given, step) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    falling = given.model_copy(update={"learning_rate_schedule": "cosine"})
    rates = [learning_rate(falling, step) for step in range(9)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1] and rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[8] == pytest.approx(0, abs=1e-12)
