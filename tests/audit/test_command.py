"""`triptych audit` on a work folder: its formats and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from pipelines.cli import app
from tests.audit.world import World, changed


def run(folder: Path, what: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["audit", what, "--work-dir", str(folder), *options])


def test_what_holds_ends_with_0(world: World) -> None:
    found = run(world.folder, "champion")
    assert found.exit_code == 0, found.output
    assert found.output.startswith("champion: version 2 of portraits: champion")


def test_what_does_not_hold_ends_with_1(world: World) -> None:
    with changed(world.evidence("2") / "README.md", b"better than it is"):
        found = run(world.folder, "2")
    assert found.exit_code == 1
    assert "does not hold  evidence/README.md of version 2" in found.output


def test_what_nobody_knows_ends_with_2(world: World) -> None:
    found = run(world.folder, "77")
    assert found.exit_code == 2
    assert "version 77 of portraits is not in the ledger" in found.output


def test_json(world: World) -> None:
    found = run(world.folder, str(world.picture(1)), "--format", "json", "--image")
    assert found.exit_code == 0
    assert json.loads(found.output)["kind"] == "training image"


def test_html_goes_to_a_file(world: World, tmp_path: Path) -> None:
    found = run(world.folder, "2", "--format", "html", "--output", str(tmp_path / "page.html"))
    assert found.exit_code == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in found.output


def test_a_folder_without_a_ledger_gets_none(tmp_path: Path) -> None:
    found = run(tmp_path, "1")
    assert found.exit_code == 2
    assert "there is no ledger" in found.output
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_is_gone_is_not_made_anew(world: World) -> None:
    database = world.folder / "mlflow.db"
    database.rename(database.with_suffix(".away"))
    try:
        found = run(world.folder, "2")
        assert found.exit_code == 1
        assert not database.exists()
    finally:
        database.with_suffix(".away").rename(database)
    assert "there is no registry to look into" in found.output
