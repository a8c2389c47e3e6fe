"""The commands that move the champion and look after the ledger, on a real store and ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lineage.database import DatabaseStore
from lineage.entries import Moved
from lineage.ledger import Ledger
from lineage.policy import policy_digest
from pipelines.cli import app
from pipelines.configuration import policy_of, read_sections
from tests.lineage.worlds import GATE, MODEL, World
from tests.runs import AVATARS


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """One that names the model, and data that is not there: who moves a champion need not have it."""
    path = tmp_path / "retrain.yaml"
    content = {"extends": str(AVATARS / "retrain.yaml"), "data": {"source": "/gone"}, "registry": {"model_name": MODEL}}
    path.write_text(yaml.safe_dump(content))
    return path


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


def move(world: World, *arguments: str | Path) -> Result:
    return call(*arguments, "--work-dir", world.folder)


def moves(world: World) -> list[Moved]:
    return [entry.body for entry in world.home.open().entries() if isinstance(entry.body, Moved)]


def test_promote_follows_the_verdict(world: World) -> None:
    done = move(world, "promote", "1")
    assert done.exit_code == 0, done.output
    assert world.agrees() == "1"
    refused = move(world, "promote", "2")
    assert refused.exit_code == 1
    assert "the gate's verdict on version 2 of portraits is reject, not promote" in refused.output
    assert world.agrees() == "1"


def test_break_glass_rollback_and_withdraw_need_reasons_and_are_remembered(world: World) -> None:
    move(world, "promote", "1")
    assert move(world, "promote", "2", "--override").exit_code == 2
    assert move(world, "promote", "2", "--override", "--reason", "incident 7").exit_code == 0
    assert world.agrees() == "2"
    assert move(world, "rollback", "1").exit_code == 2
    assert move(world, "rollback", "1", "--reason", " ").exit_code == 2
    assert move(world, "rollback", "1", "--reason", "complaints").exit_code == 0
    assert world.agrees() == "1"
    assert move(world, "withdraw", "1", "--reason", "no consent").exit_code == 0
    assert world.agrees() == ""
    said = [(body.action, body.reason) for body in moves(world)]
    assert said == [("promote", ""), ("override", "incident 7"), ("rollback", "complaints"), ("withdraw", "no consent")]
    assert all("unauthenticated" in body.user for body in moves(world))


def test_the_model_is_named_configured_or_the_only_one(world: World, configuration: Path) -> None:
    assert move(world, "promote", "1", "--model", "landscapes").exit_code == 1, "the ledger has no such version"
    assert move(world, "promote", "1", "--config", configuration).exit_code == 0, "nobody looked for the data"
    world.home.set_policy("landscapes", {}, {}, "another one")
    which = move(world, "reconcile", "--model", MODEL)
    assert which.exit_code == 0, which.output
    asked = move(world, "rollback", "1", "--reason", "why not")
    assert asked.exit_code == 2
    assert "The ledger knows landscapes, portraits; say by --model or --config" in asked.output


def test_reconcile_says_what_it_found(world: World) -> None:
    move(world, "promote", "1")
    move(world, "reconcile")
    assert "agree with the ledger" in move(world, "reconcile").output
    world.store.client.set_registered_model_alias(MODEL, "champion", "2")
    assert "alias champion was on version 2, is on version 1" in move(world, "reconcile").output


def test_reconcile_fails_while_something_cannot_be_trusted(world: World) -> None:
    move(world, "promote", "1")
    champion = next(version for version in world.store.versions() if version.number == "1")
    (Path(champion.source.removeprefix("file://")) / "MLmodel").write_text("loader: mine")
    found = move(world, "reconcile")
    assert found.exit_code == 1
    assert "the champion, version 1, cannot be trusted" in found.output


def test_an_export_is_verified_with_nothing_else(world: World, tmp_path: Path) -> None:
    move(world, "promote", "1")
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
    assert DatabaseStore(there).entries(0) == world.home.open().entries()
    again = call("ledger", "import", export, root, "--into", there)
    assert again.exit_code == 1 and "holds a ledger already" in again.output
    lines = export.read_text().splitlines()
    export.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    broken = call("ledger", "import", export, root, "--into", f"sqlite:///{tmp_path / 'third.db'}")
    assert broken.exit_code == 1 and not (tmp_path / "third.db").exists()


def test_keys_are_rotated_and_revoked(world: World) -> None:
    assert move(world, "ledger", "rotate", "run").exit_code == 0
    assert move(world, "promote", "1").exit_code == 0
    revoked = move(world, "ledger", "revoke", "gate", "--since", "1", "--reason", "lost")
    assert revoked.exit_code == 0, revoked.output
    assert world.state.champion(MODEL) is None, "the verdict it rested on does not count any more"
    move(world, "reconcile")
    assert world.agrees() == ""
    assert move(world, "ledger", "rotate", "root").exit_code == 1


@pytest.mark.parametrize("role", ["promotion", "witness"])
def test_the_channel_trusts_a_new_key_at_once(world: World, role: str) -> None:
    move(world, "promote", "1")
    rotated = move(world, "ledger", "rotate", role)
    assert rotated.exit_code == 0, rotated.output
    assert world.agrees() == "1", "a client that began with the first root goes on"
    assert move(world, "promote", "2", "--override", "--reason", "the new key counts").exit_code == 0
    assert world.agrees() == "2"


def test_where_the_root_key_is_offline_the_channel_waits_for_it(world: World, tmp_path: Path) -> None:
    move(world, "promote", "1")
    root = world.home.keys / "root.pem"
    root.rename(tmp_path / "root.pem")
    assert "where root.pem is, run: triptych channel init" in move(world, "ledger", "rotate", "witness").output
    stuck = move(world, "reconcile")
    assert stuck.exit_code == 1 and "the channel did not follow the ledger" in stuck.output
    assert move(world, "channel", "init").exit_code == 1, "without the root key nobody renews it"
    (tmp_path / "root.pem").rename(root)
    assert move(world, "channel", "init").exit_code == 0
    assert move(world, "channel", "publish").exit_code == 0
    assert world.agrees() == "1"


def test_a_work_folders_channel_is_read_with_its_root_of_trust(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    move(world, "promote", "1")
    held = move(world, "channel", "verify")
    assert held.exit_code == 0, held.output
    assert "portraits: champion: version 1" in held.output
    assert list((tmp_path / "state" / "triptych").iterdir()), "what was seen of it is remembered"
    before = {path: path.read_bytes() for path in world.home.channel.rglob("*") if path.is_file()}
    move(world, "promote", "2", "--override", "--reason", "incident 7")
    assert "version 2" in move(world, "channel", "verify").output
    for path, content in before.items():
        path.write_bytes(content)
    back = move(world, "channel", "verify")
    assert back.exit_code == 1 and "rolled back" in back.output
    stranger = call("channel", "verify", world.home.channel, "--root", tmp_path / "none.json", "--work-dir", tmp_path)
    assert stranger.exit_code == 2


def test_a_channel_elsewhere_is_made_with_the_work_folders_root_key(world: World, tmp_path: Path) -> None:
    there, root = tmp_path / "elsewhere", tmp_path / "root.json"
    made = move(world, "channel", "init", "--place", there, "--output", root)
    assert made.exit_code == 0, made.output
    assert root.read_bytes() == (there / "metadata" / "1.root.json").read_bytes()


def test_the_policy_is_shown_and_set_with_a_reason(world: World, configuration: Path) -> None:
    shown = move(world, "policy", "show")
    assert shown.exit_code == 0 and yaml.safe_load(shown.output.split("\n", 1)[1])["gate"] == GATE
    assert move(world, "policy", "set", "--config", configuration).exit_code == 2
    changed = move(world, "policy", "set", "--config", configuration, "--reason", "wider margins")
    assert changed.exit_code == 0, changed.output
    assert "gate.margins: None -> " in changed.output
    refused = move(world, "promote", "1")
    assert refused.exit_code == 1 and "was given under policy" in refused.output
    again = move(world, "policy", "set", "--config", configuration, "--reason", "once more")
    assert "this is the policy of portraits already" in again.output
    read = read_sections(configuration, "evaluation", "gate")
    pinned = world.state.policies[MODEL]
    assert pinned.digest == policy_digest(**policy_of(read.evaluation, read.gate))
    assert (pinned.reason, "unauthenticated" in pinned.user) == ("wider margins", True)


def test_a_model_without_a_policy_is_told(world: World) -> None:
    found = move(world, "policy", "show", "--model", "landscapes")
    assert found.exit_code == 1 and "none is pinned for landscapes" in found.output


def test_there_has_to_be_a_ledger(tmp_path: Path) -> None:
    commands = [("promote", "1"), ("reconcile",), ("rollback", "1", "--reason", "x"), ("policy", "show"), ("models",)]
    commands += [("channel", "publish"), ("ledger", "show"), ("audit", "1"), ("reproduce", "1"), ("ui",)]
    for command in commands:
        refused = call(*command, "--work-dir", tmp_path)
        assert refused.exit_code == 2 and "there is no ledger" in refused.output, command
    assert list(tmp_path.iterdir()) == [], "asking makes nothing"


def test_an_interrupted_command_ends_with_130(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "entries", interrupted)
    assert move(world, "ledger", "show").exit_code == 130
