"""What the terminal shows at a run's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.close_run.close import Outcome
from pipelines.report import print_outcome
from pipelines.retrain import Finished
from tests.documents import example

FIGURE: dict[str, Any] = example.verdict("sha256:0").predicate["figures"][0]


def shown(decision: str, figures: list[dict[str, Any]], anchor: list[dict[str, Any]], width: int = 80) -> str:
    """The text at the end of a run whose gate decided so."""
    ruling = {"decision": decision, "reasons": ["because"], "figures": figures, "anchor": anchor}
    records = [
        example.record("plan", 1, facts={"incumbent_name": "champion (version 2)"}),
        example.record("gate", 2, facts=ruling),
        example.record("promote", 3, facts={"alias": "", "version": "3"}),
    ]
    console = Console(record=True, width=width)
    finished = Finished("judged", {record.step: record for record in records}, Path("log"))
    print_outcome(console, finished, Path("work"), "portraits")
    return console.export_text()


def test_the_anchor_has_a_table_of_its_own_where_it_was_scored() -> None:
    text = shown("reject", [FIGURE], [{**FIGURE, "incumbent": 0.951, "lower": -0.5}])
    before, after = text.split("candidate against the anchor")
    assert "candidate against champion (version 2)" in before and "0.951" not in before
    assert "anchor" in after and "0.951" in after and "no" in after
    assert "anchor" not in shown("promote", [FIGURE], [])


@pytest.mark.parametrize("outcome", ["nothing-new", "busy"])
def test_a_run_with_nothing_to_do_says_why_word_for_word(outcome: Outcome) -> None:
    noted = example.record("nothing-new", 1, parameters={"reason": "busy: run [r-1] has portraits [to itself]"})
    console = Console(record=True, width=120)
    print_outcome(console, Finished(outcome, {"nothing-new": noted}, Path("log")), Path("work"), "portraits")
    assert console.export_text() == "busy: run [r-1] has portraits [to itself]\n"


def test_an_invalid_verdict_has_reasons_and_no_empty_table() -> None:
    text = shown("invalid", [], [])
    assert "verdict: invalid" in text and "because" in text
    assert "candidate against" not in text


def test_no_number_wraps_at_80_columns() -> None:
    long = {"incumbent": 123.456, "candidate": 120.123, "difference": -3.333, "lower": -10.123, "upper": 5.111}
    lines = shown("reject", [FIGURE, {**FIGURE, "name": "copies of training pictures", **long}], []).splitlines()
    assert max(map(len, lines[: lines.index("verdict: reject")])) <= 80
    assert any("123.456 → 120.123" in line and "-3.333 (-10.123 to +5.111)" in line for line in lines)


def test_the_end_names_commands_that_work_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the path by which this one was called, where the shell finds no triptych by its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [".venv/bin/triptych", "retrain"])
    named = [line.split("  ")[1] for line in shown("hold", [FIGURE], []).splitlines()[-3:]]
    assert named == [f".venv/bin/triptych {what} --work-dir work" for what in ("ui", "audit 3", "serve")]
