"""A run whose candidate cannot be judged: it ends, keeps all it has, and the champion stays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lineage.embedded import Embedded
from lineage.registry import Registry, Version
from tests.runs import triptych

Run = subprocess.CompletedProcess[str]
REASON = "scorer opticians ended with status 1: a lens cracked at"


@pytest.fixture
def store(work: Path) -> Registry:
    return Registry(f"sqlite:///{work / 'mlflow.db'}", "portrait-avatars")


@pytest.fixture
def unjudged(invalid: Run, store: Registry) -> Version:
    """The version that the run registered."""
    assert invalid.returncode == 0, invalid.stdout + invalid.stderr
    return store.versions()[-1]


def test_a_scorer_that_fails_on_one_picture_gives_an_invalid_verdict(
    invalid: Run, unjudged: Version, work: Path, store: Registry
) -> None:
    assert "verdict: invalid" in invalid.stdout
    assert REASON in invalid.stdout
    assert unjudged.tags["decision"] == "invalid" and not unjudged.aliases
    state = Embedded(work / "lineage").open("tests").state
    assert [past.version for past in state.champions["portrait-avatars"]] == ["1"], "only the first run moved it"
    assert store.client.get_run(unjudged.mlflow_run).info.status == "FINISHED"


def test_the_changed_policy_is_named_line_by_line(invalid: Run, unjudged: Version) -> None:
    assert "policy: evaluation.scorers: " in invalid.stdout


def test_what_is_stored_of_it_says_why(unjudged: Version, store: Registry) -> None:
    evidence = Path(unjudged.evidence.removeprefix("file://"))
    evaluation = json.loads((evidence / "scores" / "evaluation.json").read_text())
    assert REASON in evaluation["unusable"]
    assert [scorer["name"] for scorer in evaluation["scorers"]] == ["attributes", "opticians"]
    card = (evidence / "README.md").read_text()
    assert "Decision of the gate: invalid" in card and REASON in card
    assert "Nothing was measured" in card
    assert (evidence / "verdict" / "pareto.png").is_file()
    described = store.client.get_model_version("portrait-avatars", unjudged.number).description
    assert REASON in described and "grid.png" not in described, "there is no grid to show"


def test_it_can_be_audited(unjudged: Version, work: Path, invalid_configuration: Path, tmp_path: Path) -> None:
    where = ("--config", invalid_configuration, "--work-dir", work)
    text = triptych("audit", unjudged.number, *where)
    assert text.returncode == 0, text.stdout + text.stderr
    assert "GATE: invalid" in text.stdout and REASON in text.stdout
    assert "Everything that was checked holds" in text.stdout
    page = tmp_path / "audit.html"
    written = triptych("audit", unjudged.number, *where, "--format", "html", "--output", page)
    assert written.returncode == 0, written.stderr
    assert "The gate: invalid" in page.read_text() and "a lens cracked at" in page.read_text()
