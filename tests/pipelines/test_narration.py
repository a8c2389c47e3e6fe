"""What a person sees of a run, from the output that KFP and the steps really print."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lineage.progress import track
from pipelines import narration
from pipelines.narration import Narration

OUTPUT = (
    "15:10:05.643 - INFO - Executing task \x1b[96m'snapshot-data'\x1b[0m\n"
    "some noise of the step\n"
    "15:10:16.735 - INFO - Task \x1b[96m'snapshot-data'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"
    "15:10:16.743 - INFO - Executing task \x1b[96m'plan'\x1b[0m\n"
    "15:10:50.135 - INFO - Task \x1b[96m'plan'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m\n"
)


def test_one_line_a_step_and_everything_in_the_log(tmp_path: Path) -> None:
    shown = io.StringIO()
    with Narration(Console(file=shown, width=80), tmp_path / "run.log") as stream:
        for start in range(0, len(OUTPUT), 7):  # output comes in pieces
            stream.write(OUTPUT[start : start + 7])
    lines = shown.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["snapshot-data", "plan"]
    assert "failure" in lines[1]
    log = (tmp_path / "run.log").read_text()
    assert "some noise" in log
    assert "Executing task 'snapshot-data'" in log, "the log has no colours"


def test_progress_elsewhere_than_on_a_terminal_is_plain_and_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(narration.time, "monotonic", lambda: float(next(clock)))
    shown = io.StringIO()
    with Narration(Console(file=shown, width=80), tmp_path / "run.log") as stream:
        for done in range(1, 7):
            stream.write(f"[progress] sampling {done}/6, 0:10 left\n")
    lines = shown.getvalue().splitlines()
    assert lines == ["    sampling 3/6, 0:10 left", "    sampling 6/6, 0:10 left"]


def test_a_terminal_shows_one_bar_with_the_time_left(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True)
    with Narration(console, tmp_path / "run.log") as stream:
        stream.write("[progress] fine-tuning 40/90, loss 0.1234, 12.3 images/s, 0:10 left\n")
        stream._bar.refresh()
        (line,) = [line for line in shown.getvalue().splitlines() if "fine-tuning" in line][-1:]
    assert "40/90" in line and "0:10 left" in line and "loss" not in line


def test_steps_report_progress_in_the_form_that_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "sampling", total=100, every=0.0, weight=50)) == [1, 2]
    assert capsys.readouterr().out.splitlines() == [
        "[progress] sampling 50/100, 0:00 left",
        "[progress] sampling 100/100, 0:00 left",
    ]
