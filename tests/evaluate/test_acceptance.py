"""A scorer that does not see damage is told before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from components.evaluate.acceptance import DAMAGES, SWAPPED, accept
from components.evaluate.evaluation_set import Prompt
from components.evaluate.judging import agreement
from examples.avatars.data import EVALUATION
from pipelines.cli import app
from tests.evaluate.conftest import SCORERS
from tests.runs import AVATARS

PICTURES = [
    Image.fromarray(
        np.random.default_rng(place).integers(0, 255, (32, 32, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    )
    for place in range(12)
]
PROMPTS = [Prompt(id=str(place), text=f"picture {place}", seeds=(0,), attributes={}) for place in range(12)]


class Sharpness:
    name, axis, higher_is_better, backbone, digest = "sharpness", "realism", True, "none", "sha256:0"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, NDArray[np.float64]]:
        return {
            "realism": np.array([np.abs(np.diff(np.asarray(image.convert("L"), float))).mean() for image in images])
        }


class Blind(Sharpness):
    name = "blind"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, NDArray[np.float64]]:
        return {"realism": np.ones(len(images))}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_changes_a_picture_and_keeps_its_size(damage: str) -> None:
    before = np.asarray(PICTURES[0], dtype=float)
    moved = [np.abs(np.asarray(DAMAGES[damage](PICTURES[0], severity), float) - before).mean() for severity in range(3)]
    assert 0 < moved[0] < moved[1] < moved[2] or damage == "crop"
    assert DAMAGES[damage](PICTURES[0], 2).size == PICTURES[0].size


def test_who_sees_damage_and_who_does_not() -> None:
    sharp = accept(Sharpness(), PICTURES, PROMPTS)
    assert sharp.seen["blur"] == (1.0, 1.0, 1.0) and sharp.seen["noise"][-1] < 0.5, "noise looks sharp to it"
    assert not sharp.blind
    blind = accept(Blind(), PICTURES, PROMPTS)
    assert blind.blind and set(blind.seen[SWAPPED]) == {0.5}


def test_the_command_looks_at_every_scorer_of_a_configuration(tmp_path: Path) -> None:
    names = {"avatars-alignment": "alignment", "avatars-realism": "realism", "avatars-kid": "realism"}
    scorers = [{"scorer": name, "weights": str(SCORERS / f"{file}.safetensors")} for name, file in names.items()]
    config = tmp_path / "evaluation.yaml"
    config.write_text(yaml.safe_dump({"evaluation": {"evaluation_set": str(EVALUATION), "scorers": scorers}}))
    result = CliRunner().invoke(app, ["scorers", "accept", "--config", str(config), "--count", "12"])
    assert result.exit_code == 0, result.output
    assert "avatars-kid: compares sets; not looked at" in result.output
    swapped = [line for line in result.output.splitlines() if SWAPPED in line]
    assert float(swapped[0].split()[-1]) > 0.9, "alignment sees another's caption"
    nowhere = CliRunner().invoke(app, ["scorers", "accept", "--config", str(AVATARS / "gone.yaml")])
    assert nowhere.exit_code == 2


def test_judges_that_say_the_same_are_told() -> None:
    draw = np.random.default_rng(0).normal(size=(2, 40, 3))
    draw[..., 1] = draw[..., 0] * 5 + 1
    rows = [
        {"prompt": f"p{place}", "seed": 1, "model": model, "measure": measure, "value": draw[who, place, column]}
        for who, model in enumerate(("candidate", "incumbent"))
        for place in range(40)
        for column, measure in enumerate(("alignment", "aesthetics", "realism"))
    ]
    found = agreement(rows, {"alignment", "aesthetics", "realism"})
    assert found["aesthetics and alignment"] == 1.0 and abs(found["alignment and realism"]) < 0.5
    assert agreement(rows[:120], {"alignment"}) == {}
