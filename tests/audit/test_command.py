"""`triptych audit` on a work folder: its formats and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.audit_cli import Format, audit_command
from tests.audit.world import World, changed

NO_CONFIG = Path("unused.yaml")


def run(world: World, what: str, format: Format = "text", output: Path | None = None, image: bool = False) -> int:
    return audit_command(what, image, world.folder, NO_CONFIG, format, output)


def test_what_holds_ends_with_0(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "champion") == 0
    assert capsys.readouterr().out.startswith("champion: version 2 of portraits: champion")


def test_what_does_not_hold_ends_with_1(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with changed(world.evidence("2") / "README.md", b"better than it is"):
        assert run(world, "2") == 1
    assert "does not hold  evidence/README.md of version 2" in capsys.readouterr().out


def test_what_nobody_knows_ends_with_2(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "77") == 2
    assert "version 77 of portraits is not in the ledger" in capsys.readouterr().err


def test_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, str(world.picture(1)), "json", image=True) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "training image"


def test_html_goes_to_a_file(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "2", "html", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out


def test_a_folder_without_a_ledger_gets_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command("1", False, tmp_path, NO_CONFIG, "text", None) == 2
    assert "there is no ledger" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_is_gone_is_not_made_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    database = world.folder / "mlflow.db"
    database.rename(database.with_suffix(".away"))
    try:
        assert run(world, "2") == 1
        assert not database.exists()
    finally:
        database.with_suffix(".away").rename(database)
    assert "there is no registry to look into" in capsys.readouterr().out
