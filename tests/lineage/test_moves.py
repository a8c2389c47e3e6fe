"""Moves of the champion on a real MLflow store: what is allowed, what a crash leaves, what happens behind the back."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any, Literal

import pytest

from components.promote.promote import promote_version
from lineage.digests import LineageError
from lineage.entries import Closed, LedgerError, Moved, StaleError
from lineage.registry import Registry, RegistrySettings
from lineage.signing import open_signer
from lineage.witness import FileWitness
from tests.lineage.worlds import EVALUATION, MODEL, World, move


@pytest.fixture
def world(tmp_path: Path, migrated: bytes) -> World:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    return World(tmp_path)


@pytest.fixture
def two(world: World) -> World:
    """Version 1 is champion, version 2 was judged against it."""
    world.mover().move("promote", world.candidate("one", world.base))
    world.candidate("two", world.digest("one"))
    return world


def started(world: World, *asked: str) -> Any:
    """A move in a process of its own, forked from one that has everything loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "tests.lineage.worlds"])
    process = context.Process(target=move, args=(world.folder, *asked))
    process.start()
    return process


def killed(world: World, *asked: str) -> bool:
    process = started(world, *asked)
    process.join(120)
    return bool(process.exitcode == -signal.SIGKILL)


def test_a_promotion_moves_alias_tags_and_ledger(two: World) -> None:
    two.mover().move("promote", "2")
    assert two.agrees() == "2"
    tags = {version.number: version.tags["standing"] for version in two.store.versions()}
    assert tags == {"1": "former champion", "2": "champion"}
    last = two.home.open().entries()[-1].body
    assert isinstance(last, Moved)
    assert (last.action, last.previous_version, last.previous) == ("promote", "1", two.digest("one"))
    assert "unauthenticated" in last.user
    size = two.state.size
    two.mover().move("promote", "2")
    assert two.state.size == size, "repeating it changes nothing"


def test_a_stale_verdict_does_not_promote(two: World) -> None:
    third = two.candidate("three", two.digest("one"))
    two.mover().move("promote", "2")
    with pytest.raises(StaleError, match="judge it anew"):
        two.mover().move("promote", third)
    assert two.agrees() == "2"


def test_the_first_champion_needs_a_verdict_against_a_base_model(two: World) -> None:
    two.mover().move("withdraw", "1", "no consent")
    assert two.agrees() == ""
    with pytest.raises(StaleError, match="former champion"):
        two.mover().move("promote", "2")


def test_a_rejected_version_needs_break_glass(world: World) -> None:
    number = world.candidate("one", world.base, "reject")
    with pytest.raises(LedgerError, match="is reject, not promote"):
        world.mover().move("promote", number)
    with pytest.raises(LedgerError, match="needs a reason"):
        world.mover().move("override", number, "")
    world.mover().move("override", number, "the evaluation set is broken, see incident 7")
    assert world.agrees() == number
    (moved,) = [entry.body for entry in world.home.open().entries() if isinstance(entry.body, Moved)]
    assert moved.action == "override"


def test_a_rollback_goes_to_a_former_champion_only(two: World) -> None:
    with pytest.raises(LedgerError, match="never champion"):
        two.mover().move("rollback", "2", "because")
    two.mover().move("promote", "2")
    two.mover().move("rollback", "1", "complaints")
    assert two.agrees() == "1"


def test_what_is_withdrawn_never_comes_back(two: World) -> None:
    two.mover().move("promote", "2")
    two.mover().move("withdraw", "2", "no consent")
    assert two.agrees() == ""
    for action in ("rollback", "override", "promote"):
        with pytest.raises(LedgerError, match="was withdrawn"):
            two.mover().move(action, "2", "because")  # type: ignore[arg-type]
    two.mover().move("rollback", "1", "the last good one")
    assert two.agrees() == "1"


def test_changed_weights_are_not_promoted(two: World) -> None:
    stored = next(
        path
        for path in two.folder.rglob("weights.safetensors")
        if path.read_text() == "two" and "artifacts" in path.parts
    )
    stored.write_text("swapped")
    with pytest.raises(LineageError, match="the weights of version 2 of portraits were changed"):
        two.mover().move("promote", "2")
    assert two.agrees() == "1"


def test_a_version_made_again_is_not_the_one_that_was_judged(world: World) -> None:
    number = world.candidate("one", world.base)
    source = world.store.client.get_model_version(MODEL, number).source
    world.store.client.delete_registered_model(MODEL)
    world.store.client.create_registered_model(MODEL)
    world.store.client.create_model_version(MODEL, source, run_id=world.store.open_run("another"))
    with pytest.raises(LineageError, match="made again from another run"):
        world.mover().move("promote", number)


def test_unknown_versions_are_named(world: World) -> None:
    with pytest.raises(LedgerError, match="version 7 of portraits is not in the ledger"):
        world.mover().move("promote", "7")


@pytest.mark.parametrize(
    "boundary", ["before-moved", "after-moved", "after-tags", "after-alias", "after-channel", "after-checkpoint"]
)
@pytest.mark.parametrize(
    ("action", "version", "after"), [("promote", "2", "2"), ("rollback", "0", "1"), ("withdraw", "1", "")]
)
def test_a_kill_at_any_boundary_is_reconciled(two: World, boundary: str, action: str, version: str, after: str) -> None:
    before = "1"
    if action == "rollback":
        two.mover().move("promote", "2")
        before, version = "2", "1"
    assert killed(two, action, version, boundary)
    two.mover().reconcile()
    assert two.agrees() == (before if boundary == "before-moved" else after)
    assert two.mover().reconcile().said == [], "a second look finds nothing to do"


def test_two_processes_that_want_to_promote(two: World) -> None:
    two.candidate("three", two.digest("one"))
    racers = [started(two, "promote", version) for version in ("2", "3")]
    for racer in racers:
        racer.join(120)
    assert sorted(racer.exitcode for racer in racers) == [0, 1]
    refused = (two.folder / "refused").read_text()
    assert refused.startswith("StaleError")
    assert two.agrees() in ("2", "3")


def test_what_was_done_behind_the_guards_back_is_found_and_undone(two: World) -> None:
    two.store.client.set_registered_model_alias(MODEL, "champion", "2")
    two.store.client.set_model_version_tag(MODEL, "2", "triptych.standing", "champion")
    two.store.client.delete_model_version_tag(MODEL, "1", "triptych.decision")
    said = two.mover().reconcile().said
    assert "alias champion was on version 2, is on version 1" in said
    assert "version 1: tag decision set to promote" in said
    assert two.agrees() == "1"


def test_a_champion_whose_version_is_gone_is_told_and_a_person_decides(two: World) -> None:
    assert killed(two, "promote", "2", "after-moved")
    two.store.client.delete_model_version(MODEL, "2")
    said = two.mover().reconcile().said
    assert any("cannot be trusted: version 2 of portraits is not in the registry any more" in line for line in said)
    champion = two.state.champion(MODEL)
    assert champion and champion.version == "2", "what the ledger decided stands until a person moves it"
    two.mover().move("rollback", "1", "version 2 was deleted")
    assert two.agrees() == "1"


def test_a_store_that_fails_for_a_moment_undoes_no_move(two: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("the network is away")

    mover = two.mover()
    monkeypatch.setattr(Registry, "point", fails)
    said = mover.move("promote", "2")
    assert any("the registry did not follow the ledger: the network is away" in line for line in said)
    monkeypatch.undo()
    two.mover().reconcile()
    assert two.agrees() == "2"


def test_a_witness_that_fails_does_not_fail_a_move(two: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileWitness, "write", lambda *_: True)
    said = two.mover().move("promote", "2")
    assert any("the witness did not keep the checkpoint" in line for line in said)
    assert two.agrees() == "2"


def test_code_put_beside_the_weights_is_not_promoted(two: World) -> None:
    folder = next(
        path
        for path in two.folder.rglob("MLmodel")
        if "# model of two" in path.read_text() and "artifacts" in path.parts
    )
    (folder.parent / "evil.py").write_text("import os")
    with pytest.raises(LineageError, match="what lies around the weights of version 2 of portraits was changed"):
        two.mover().move("promote", "2")
    (folder.parent / "evil.py").unlink()
    folder.write_text("loader_module: evil")
    with pytest.raises(LineageError, match="whoever loads the version would run it"):
        two.mover().move("promote", "2")
    assert two.agrees() == "1"


def test_a_champion_whose_code_was_changed_is_reported(two: World) -> None:
    for path in two.folder.rglob("artifacts/**/MLmodel"):
        path.write_text("loader_module: evil")
    assert any("cannot be trusted" in line and "lies around" in line for line in two.mover().reconcile().said)


def test_a_verdict_under_another_policy_never_promotes(world: World) -> None:
    number = world.candidate("one", world.base, policy="sha256:lenient")
    with pytest.raises(LedgerError, match="was given under policy sha256:lenient"):
        world.mover().move("promote", number)
    two = world.candidate("two", world.base)
    world.home.set_policy(MODEL, EVALUATION, {"alpha": 0.5}, "looser")
    with pytest.raises(LedgerError, match="the ledger pins"):
        world.mover().move("promote", two)
    assert world.agrees() == ""


def test_going_back_by_a_promotion_needs_a_reason(two: World) -> None:
    two.mover().move("promote", "2")
    with pytest.raises(LedgerError, match="was champion before; going back needs a reason"):
        two.mover().move("promote", "1")
    assert two.agrees() == "2"


def test_a_withdrawal_outlives_the_revocation_of_the_key_that_signed_it(two: World) -> None:
    size = two.state.size
    two.mover().move("withdraw", "1", "no consent")
    two.home.revoke("promotion", size, "the key was stolen")
    assert two.digest("one") in two.state.withdrawn
    assert two.state.champion(MODEL) is None
    two.mover().reconcile()
    assert two.agrees() == ""


@pytest.mark.parametrize("action", ["promote", "rollback", "override"])
def test_once_an_entry_is_void_the_writer_still_keeps_every_rule(two: World, action: Any) -> None:
    rejected = two.candidate("three", two.digest("one"), "reject")
    two.mover().move("promote", "2")
    size = two.state.size
    two.home.open().append(Closed(run="r", outcome="a stolen key says so"), open_signer(two.home.uri("run")))
    two.home.revoke("run", size, "it was stolen")
    assert two.state.void
    size = two.state.size
    number = {"promote": rejected, "rollback": rejected, "override": "9"}[action]
    with pytest.raises(LedgerError):
        two.mover().move(action, number, "because" if action != "promote" else "")
    assert two.state.size == size, "nothing was written"
    assert two.agrees() == "2"


def test_a_version_that_the_ledger_does_not_know_is_reported(two: World) -> None:
    source = two.store.client.get_model_version(MODEL, "1").source
    two.store.client.create_model_version(MODEL, source, run_id=two.store.open_run("smuggled"))
    assert "version 3 of portraits is in the registry but not in the ledger" in two.mover().reconcile().said
    assert two.store.versions()[2].tags["standing"] == "not in the ledger"


def test_a_champion_whose_weights_were_changed_is_reported(two: World) -> None:
    for path in two.folder.rglob("weights.safetensors"):
        path.write_text("swapped")
    assert any("cannot be trusted" in line for line in two.mover().reconcile().said)


@pytest.mark.parametrize(
    ("mode", "decision", "given", "champion"),
    [
        ("auto", "promote", {"alias": "champion"}, "1"),
        ("auto", "hold", {"alias": ""}, ""),
        ("manual", "promote", {"alias": "challenger"}, ""),
        ("manual", "reject", {"alias": ""}, ""),
    ],
)
def test_the_step_moves_what_its_mode_and_the_verdict_say(
    world: World, mode: Literal["auto", "manual"], decision: str, given: dict[str, str], champion: str
) -> None:
    number = world.candidate("one", world.base, decision)
    settings = RegistrySettings(model_name=MODEL, mode=mode)
    done = promote_version(world.context, settings, number)
    done.pop("said", None)
    assert done == given
    assert world.agrees() == champion
    aliases = {alias for version in world.store.versions() for alias in version.aliases}
    assert aliases == ({given["alias"]} if given["alias"] else set())


def test_the_step_says_when_its_verdict_is_stale(two: World) -> None:
    third = two.candidate("three", two.digest("one"))
    two.mover().move("promote", "2")
    given = promote_version(two.context, RegistrySettings(model_name=MODEL), third)
    assert given["alias"] == "" and given["stale"].startswith("stale")
