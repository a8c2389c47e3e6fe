"""`triptych validate`: data judged alone; the exit status tells."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import rich.console
from typer.testing import CliRunner

from lineage.progress import MARK
from pipelines import validate as validate_module
from pipelines.cli import app
from pipelines.configuration import read_configuration
from tests.components.test_validate_data import AVATARS, GOOD, Portraits, picture

CONFIG = AVATARS.with_name("retrain.yaml")


def command(portraits: Portraits, *arguments: str) -> Any:
    portraits.pin()
    out = str(portraits.folder / "out")
    return CliRunner().invoke(
        app, ["validate", str(portraits.source), "--config", str(CONFIG), "--out", out, *arguments]
    )


@pytest.fixture
def portraits(tmp_path: Path) -> Portraits:
    return Portraits(tmp_path)


def test_good_data_ends_with_0_and_its_counts(portraits: Portraits) -> None:
    portraits.add("no-license.png", picture(900), license=None)
    portraits.rows.append({"file_name": "gone.png", "text": "no such file"})
    found = command(portraits)
    assert found.exit_code == 0, found.output
    told = f"{GOOD + 1} rows, {GOOD} accepted, 1 quarantined, 1 refused before"
    assert told in found.output
    assert "accepted" in found.output.splitlines()[-1]
    validated = portraits.folder / "out" / "validated"
    summary = json.loads((validated / "summary.json").read_text())
    assert (summary["accepted"], (validated / "report.html").is_file()) == (GOOD, True)


def test_refused_data_ends_with_1_and_the_reason(portraits: Portraits) -> None:
    for row in portraits.rows[:20]:
        row["consent"] = None
    found = command(portraits)
    assert found.exit_code == 1
    assert "20 of 110 rows are quarantined" in found.output
    assert "Traceback" not in found.output


def test_what_was_judged_before_is_not_shown_again(portraits: Portraits) -> None:
    assert command(portraits).exit_code == 0
    (portraits.source / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a portrait"}\n')
    asked = ["validate", str(portraits.source), "--config", str(CONFIG), "--out", str(portraits.folder / "out")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 1, found.output
    assert "pictures and reasons" not in found.output


@pytest.mark.parametrize("source", ["nowhere", "s3+rsync://bucket"])
def test_a_bad_request_ends_with_2(tmp_path: Path, source: str) -> None:
    place = str(tmp_path / source) if "://" not in source else source
    found = CliRunner().invoke(app, ["validate", place, "--config", str(CONFIG), "--out", str(tmp_path / "out")])
    assert found.exit_code == 2, found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_its_marks_nowhere(
    portraits: Portraits, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool
) -> None:
    portraits.pin()
    screen, out = io.StringIO(), portraits.folder / "out"
    console = rich.console.Console(file=screen, force_terminal=terminal, width=200)
    monkeypatch.setattr(validate_module, "Console", lambda file: console)
    assert validate_module.validate_source(read_configuration(CONFIG, str(portraits.source)), out)
    directly = capfd.readouterr()
    assert (directly.out, directly.err) == ("", ""), "all that is shown goes through the console"
    shown, count = screen.getvalue(), f"{GOOD}/{GOOD}"
    assert MARK.strip() not in shown and "accepted" in shown
    assert ("measuring images" in shown and count in shown) == terminal
    assert f"{MARK}measuring images {count}" in (out / "validate.log").read_text()
