"""`triptych serve`: what it is told, and what it refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app


def serve(*options: str) -> Result:
    return CliRunner().invoke(app, ["serve", *options])


def test_a_channel_without_a_root_of_trust_is_refused(tmp_path: Path) -> None:
    found = serve("--channel", str(tmp_path))
    assert found.exit_code == 2
    assert "--channel goes with --root" in found.output


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = serve("--channel", str(tmp_path), "--root", str(tmp_path / "root.json"), "--work-dir", str(tmp_path))
    assert found.exit_code == 1
    assert "to trust the channel with" in found.output


def test_a_work_folder_without_a_ledger_gets_none(tmp_path: Path) -> None:
    found = serve("--work-dir", str(tmp_path / "work"))
    assert found.exit_code == 2
    assert "run: triptych retrain" in found.output
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_wrong_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root.json").write_text("{}")
    monkeypatch.setenv("TRIPTYCH_SERVE_POLL", "never")
    found = serve("--channel", "nowhere", "--root", str(tmp_path / "root.json"), "--work-dir", str(tmp_path))
    assert found.exit_code == 1
    assert "TRIPTYCH_SERVE_POLL" in found.output
