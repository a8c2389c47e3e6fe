"""The commands that move the champion and look after the ledger, on a real store and ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lineage.ledger import SqlStore
from pipelines.cli import app
from tests.lineage.worlds import MODEL, World
from tests.runs import cut_down, some_portraits


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configuration")
    return cut_down(folder, some_portraits("new", folder / "portraits", 4), registry={"model_name": MODEL})


@pytest.fixture
def world(tmp_path: Path, migrated: bytes) -> World:
    """Version 1 was approved, version 2 judged against it and rejected."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(migrated)
    made = World(folder)
    made.candidate("one", made.base)
    made.candidate("two", made.digest("one"), "reject")
    return made


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def move(world: World, configuration: Path, *arguments: str) -> Result:
    return call(*arguments, "--config", configuration, "--work-dir", world.folder)


def test_promote_follows_the_verdict(world: World, configuration: Path) -> None:
    done = move(world, configuration, "promote", "1")
    assert done.exit_code == 0, done.output
    assert world.agrees() == "1"
    refused = move(world, configuration, "promote", "2")
    assert refused.exit_code == 1
    assert "the gate's verdict on version 2 of portraits is reject, not promote" in refused.output
    assert world.agrees() == "1"


def test_break_glass_rollback_and_withdraw_need_reasons_and_are_remembered(world: World, configuration: Path) -> None:
    move(world, configuration, "promote", "1")
    assert move(world, configuration, "promote", "2", "--override").exit_code == 2
    assert move(world, configuration, "promote", "2", "--override", "--reason", "incident 7").exit_code == 0
    assert world.agrees() == "2"
    assert move(world, configuration, "rollback", "1").exit_code == 2
    assert move(world, configuration, "rollback", "1", "--reason", "complaints").exit_code == 0
    assert world.agrees() == "1"
    assert move(world, configuration, "withdraw", "1", "--reason", "no consent").exit_code == 0
    assert world.agrees() == ""
    said = [(entry.action, entry.reason) for entry in world.state.moves.values()]
    assert said == [("promote", ""), ("override", "incident 7"), ("rollback", "complaints"), ("withdraw", "no consent")]
    assert all("unauthenticated" in entry.user for entry in world.state.moves.values())


def test_reconcile_says_what_it_found(world: World, configuration: Path) -> None:
    move(world, configuration, "promote", "1")
    assert "agrees with the ledger" in move(world, configuration, "reconcile").output
    world.store.client.set_registered_model_alias(MODEL, "champion", "2")
    assert "alias champion was on version 2, is on version 1" in move(world, configuration, "reconcile").output


def test_an_export_is_verified_with_nothing_else(world: World, configuration: Path, tmp_path: Path) -> None:
    move(world, configuration, "promote", "1")
    export, root = tmp_path / "export.jsonl", tmp_path / "export.root.pub"
    assert call("ledger", "export", export, "--work-dir", world.folder).exit_code == 0
    alone = call("ledger", "verify", export, root)
    assert alone.exit_code == 0 and "completeness not proven" in alone.output
    witnessed = call("ledger", "verify", export, root, "--checkpoint", world.folder / "lineage" / "witness")
    assert witnessed.exit_code == 0 and "complete up to entry" in witnessed.output
    lines = export.read_text().splitlines()
    export.write_text("\n".join(lines[:-1]) + "\n")
    assert call("ledger", "verify", export, root).exit_code == 0, "a chain cut short still holds"
    cut = call("ledger", "verify", export, root, "--checkpoint", world.folder / "lineage" / "witness")
    assert cut.exit_code == 1 and "taken off its end" in cut.output
    export.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    assert "one is missing" in call("ledger", "verify", export, root).output
    stranger = call("ledger", "verify", export, world.folder / "lineage" / "keys" / "gate.pub")
    assert stranger.exit_code == 1


def test_an_export_goes_into_another_database_whole_or_not_at_all(world: World, tmp_path: Path) -> None:
    export, root = tmp_path / "export.jsonl", tmp_path / "export.root.pub"
    call("ledger", "export", export, "--work-dir", world.folder)
    there = f"sqlite:///{tmp_path / 'other.db'}"
    assert call("ledger", "import", export, root, "--into", there).exit_code == 0
    assert SqlStore(there).entries(0) == world.home.open().all
    again = call("ledger", "import", export, root, "--into", there)
    assert again.exit_code == 1 and "holds a ledger already" in again.output
    lines = export.read_text().splitlines()
    export.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    broken = call("ledger", "import", export, root, "--into", f"sqlite:///{tmp_path / 'third.db'}")
    assert broken.exit_code == 1 and not (tmp_path / "third.db").exists()


def test_keys_are_rotated_and_revoked(world: World, configuration: Path) -> None:
    assert call("ledger", "rotate", "promotion", "--work-dir", world.folder).exit_code == 0
    assert move(world, configuration, "promote", "1").exit_code == 0, "the new key counts"
    revoked = call("ledger", "revoke", "gate", "--since", "1", "--reason", "lost", "--work-dir", world.folder)
    assert revoked.exit_code == 0, revoked.output
    assert world.state.champion(MODEL) is None, "the verdict it rested on does not count any more"
    move(world, configuration, "reconcile")
    assert world.agrees() == ""
    assert call("ledger", "rotate", "root", "--work-dir", world.folder).exit_code == 1


def test_there_has_to_be_a_ledger(tmp_path: Path, configuration: Path) -> None:
    for command in (("promote", "1"), ("reconcile",), ("rollback", "1", "--reason", "x")):
        refused = call(*command, "--config", configuration, "--work-dir", tmp_path)
        assert refused.exit_code == 2 and "there is no ledger" in refused.output
