"""A scorer in another interpreter, held to one contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.evaluate.evaluation_set import EvaluationError, Prompt
from components.evaluate.process import CONTRACT, ProcessScorer
from tests.evaluate.conftest import judge_models, settings

EXAMPLE = Path("examples/scorers/complexity").resolve()
PROMPTS = [Prompt(id=str(place), text=f"a portrait {place}", seeds=(place,), attributes={}) for place in range(3)]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment without any package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('numpy') is not None)"
    subprocess.run([folder / "bin" / "python", "-c", program], check=True)
    return str(folder / "bin" / "python")


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    noisy = [Image.fromarray(rng.integers(0, spread, (16, 24, 3), dtype=np.uint8)) for spread in (2, 50, 256)]
    return noisy


def test_the_example_scores_in_another_environment(elsewhere: str) -> None:
    scorer = ProcessScorer(str(EXAMPLE), "complexity", "aesthetics", [elsewhere, "score.py"])
    before = scorer.digest
    scores = scorer.score(images(), PROMPTS)["aesthetics"]
    assert scores.shape == (3,) and (np.diff(scores) > 0).all()
    assert np.array_equal(scores, scorer.score(images(), PROMPTS)["aesthetics"])
    assert scorer.ran["python"] and scorer.ran["program"].startswith("sha256:")
    again = ProcessScorer(str(EXAMPLE), "complexity", "aesthetics", [elsewhere, "score.py"])
    assert again.digest == before, "running it leaves nothing behind in its folder"
    assert ProcessScorer(str(EXAMPLE), "complexity", "aesthetics", [elsewhere, "-B", "score.py"]).digest != before


def test_evaluate_runs_it_beside_others_and_records_what_ran(
    elsewhere: str, models: dict[str, Path], small_set: Path, tmp_path: Path
) -> None:
    options = {"name": "complexity", "axis": "aesthetics", "command": [elsewhere, "score.py"], "timeout": 60.0}
    asked = {"scorer": "process", "weights": str(EXAMPLE), "options": options}
    facts = judge_models(settings(small_set, asked), models, tmp_path / "scores", tmp_path / "store")
    assert "unusable" not in facts, facts
    (said,) = facts["scorers"]
    assert (said["name"], said["measure"]) == ("complexity", "aesthetics") and said["ran"]["python"]


ANSWER = {"contract": CONTRACT, "scores": {"aesthetics": [1, 2, 3]}}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit('no such GPU')", "ended with status 1: no such GPU"),
        ("pass", "did not answer"),
        ("answer('not json')", "did not answer"),
        (f"answer({json.dumps({**ANSWER, 'contract': 'triptych.scorer/2'})!r})", "did not answer"),
        (f"answer({json.dumps({**ANSWER, 'more': 1})!r})", "did not answer"),
        (f"""answer('{{"contract": "{CONTRACT}", "scores": {{"aesthetics": [1, NaN, 3]}}}}')""", "did not answer"),
        (f"answer({json.dumps({**ANSWER, 'scores': {'aesthetics': [1, 2]}})!r})", "gave 2 scores for 3 pictures"),
        (f"answer({json.dumps({**ANSWER, 'scores': {'alignment': [1, 2, 3]}})!r})", "answered 'alignment'"),
    ],
)
def test_what_breaks_the_contract_is_refused(program: str, reason: str, tmp_path: Path) -> None:
    answer = "import sys\ndef answer(text): open(sys.argv[2], 'w').write(text)\n"
    (tmp_path / "program.py").write_text(answer + program)
    scorer = ProcessScorer(str(tmp_path), "odd", "aesthetics", [sys.executable, "program.py"])
    with pytest.raises(EvaluationError, match=reason):
        scorer.score(images(), PROMPTS)


def test_a_scorer_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    (tmp_path / "program.py").write_text(program)
    scorer = ProcessScorer(str(tmp_path), "slow", "aesthetics", [sys.executable, "program.py"], timeout=1.0)
    with pytest.raises(EvaluationError, match="took longer than 1 s"):
        scorer.score(images(), PROMPTS)


def test_a_command_that_is_not_there_is_named(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": "gone", "axis": "realism", "command": ["no-such-program"]}
    asked = {"scorer": "process", "weights": str(EXAMPLE), "options": options}
    facts = judge_models(settings(small_set, asked), models, tmp_path / "scores", tmp_path / "store")
    assert "'no-such-program' is not there" in facts["unusable"]
