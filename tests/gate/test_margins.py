"""Margins come from retrains of one recipe, by a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.gate.margins import as_settings, measure_margins
from components.gate.scores import UnusableScores
from lineage.digests import digest_path
from lineage.scores import EVALUATION_FILE, TABLE_FILE
from pipelines.cli import app
from tests.gate.tables import ATTRIBUTES, RULES, SEEDS, SET_RULES, scores, with_sets

RETRAINS = [scores(alignment=0.01 * seed, seed=7) for seed in range(2)] + [scores(seed=9)]


def test_with_the_measured_margins_no_retrain_is_shown_to_be_worse_than_another() -> None:
    noisy = [scores(noise=0.1, seed=seed) for seed in range(3)]
    found = measure_margins(noisy, RULES)
    assert {kind for kind, _ in found} == {"axis", "slice"}
    section = as_settings(found)
    assert section["margins"]["alignment"] == found["axis", "alignment"].margin > 0.04
    assert section["slices"]["no glasses asked"]["margin"] > section["margins"]["alignment"], "it has fewer prompts"


def test_a_margin_holds_what_seeds_and_prompts_leave_open() -> None:
    same = measure_margins([scores(seed=1)] * 3, RULES)["axis", "alignment"]
    assert same.of_a_prompt == same.of_a_retrain == 0
    assert 0.028 < same.margin < 0.04, "what 160 prompts cannot see at the level of 0.01"
    moved = measure_margins([scores(seed=1, alignment=shift) for shift in (0.0, 0.03, 0.06)], RULES)[
        "axis", "alignment"
    ]
    assert moved.of_a_retrain == pytest.approx(0.03, rel=0.2)
    assert moved.margin > same.margin + 0.05


def test_distances_of_sets_have_margins_too() -> None:
    found = measure_margins([with_sets(scores(), 0.1, 0.1, seed) for seed in range(3)], SET_RULES)
    assert found["axis", "realism/kid"].margin > 0


def test_two_retrains_or_different_sets_are_refused() -> None:
    with pytest.raises(UnusableScores, match="2 retrains say little"):
        measure_margins(RETRAINS[:2], RULES)


def test_the_command_writes_them(tmp_path: Path) -> None:
    places = []
    for number, made in enumerate(RETRAINS):
        folder = tmp_path / str(number) / "scores"
        folder.mkdir(parents=True)
        made.table.to_parquet(folder / TABLE_FILE, index=False)
        facts = {"evaluation_set": {"prompts": ATTRIBUTES, "seeds": SEEDS}, "scores": digest_path(folder / TABLE_FILE)}
        (folder / EVALUATION_FILE).write_text(json.dumps(facts))
        places.append(str(folder.parent))
    config = tmp_path / "gate.yaml"
    config.write_text(yaml.safe_dump({"gate": RULES.model_dump(mode="json")}))
    written = tmp_path / "margins.yaml"
    result = CliRunner().invoke(app, ["gate", "calibrate", *places, "--config", str(config), "-o", str(written)])
    assert result.exit_code == 0, result.output
    assert "σ" in result.output and "of a retrain's mean" in result.output
    section = yaml.safe_load(written.read_text())["gate"]
    assert set(section["margins"]) == {"alignment", "realism", "aesthetics"}
    few = CliRunner().invoke(app, ["gate", "calibrate", *places[:2], "--config", str(config)])
    assert few.exit_code == 2 and "3 at least" in few.output
    again = CliRunner().invoke(app, ["gate", *places[:2], "--config", str(config)])
    assert again.exit_code == 2 and "triptych gate calibrate" in again.output
