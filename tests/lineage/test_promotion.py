"""Moves of the champion on a real MLflow store: what is allowed, what a crash leaves, what happens behind the back."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any, Literal

import pytest

from components.promote.promote import promote_version
from lineage.digests import LineageError
from lineage.entries import LedgerError, StaleError
from lineage.promotion import BOUNDARIES
from lineage.registry import RegistrySettings
from tests.lineage.worlds import MODEL, World, move


@pytest.fixture
def world(tmp_path: Path, migrated: bytes) -> World:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    return World(tmp_path)


@pytest.fixture
def two(world: World) -> World:
    """Version 1 is champion, version 2 was judged against it."""
    world.promotions().promote(world.candidate("one", world.base), "somebody")
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
    two.promotions().promote("2", "somebody")
    assert two.agrees() == "2"
    tags = {version.number: version.tags["standing"] for version in two.store.versions()}
    assert tags == {"1": "former champion", "2": "champion"}
    last = list(two.state.moves.values())[-1]
    assert (last.user, last.previous_version, last.previous) == ("somebody", "1", two.digest("one"))
    size = two.state.size
    two.promotions().promote("2", "somebody else")
    assert two.state.size == size, "repeating it changes nothing"


def test_a_stale_verdict_does_not_promote(two: World) -> None:
    third = two.candidate("three", two.digest("one"))
    two.promotions().promote("2", "somebody")
    with pytest.raises(StaleError, match="judge it anew"):
        two.promotions().promote(third, "somebody")
    assert two.agrees() == "2"


def test_the_first_champion_needs_a_verdict_against_a_base_model(two: World) -> None:
    two.promotions().withdraw("1", "somebody", "no consent")
    assert two.agrees() == ""
    with pytest.raises(StaleError, match="former champion"):
        two.promotions().promote("2", "somebody")


def test_a_rejected_version_needs_break_glass(world: World) -> None:
    number = world.candidate("one", world.base, "reject")
    with pytest.raises(LedgerError, match="is reject, not promote"):
        world.promotions().promote(number, "somebody")
    with pytest.raises(LedgerError, match="needs a reason"):
        world.promotions().override(number, "somebody", "")
    world.promotions().override(number, "somebody", "the evaluation set is broken, see incident 7")
    assert world.agrees() == number
    assert next(iter(world.state.moves.values())).action == "override"


def test_a_rollback_goes_to_a_former_champion_only(two: World) -> None:
    with pytest.raises(LedgerError, match="never champion"):
        two.promotions().rollback("2", "somebody", "because")
    two.promotions().promote("2", "somebody")
    two.promotions().rollback("1", "somebody", "complaints")
    assert two.agrees() == "1"


def test_what_is_withdrawn_never_comes_back(two: World) -> None:
    two.promotions().promote("2", "somebody")
    two.promotions().withdraw("2", "somebody", "no consent")
    assert two.agrees() == ""
    for move_back in (two.promotions().rollback, two.promotions().override):
        with pytest.raises(LedgerError, match="was withdrawn"):
            move_back("2", "somebody", "because")
    two.promotions().rollback("1", "somebody", "the last good one")
    assert two.agrees() == "1"


def test_changed_weights_are_not_promoted(two: World) -> None:
    stored = next(
        path
        for path in two.folder.rglob("weights.safetensors")
        if path.read_text() == "two" and "artifacts" in path.parts
    )
    stored.write_text("swapped")
    with pytest.raises(LineageError, match="changed after they were recorded"):
        two.promotions().promote("2", "somebody")
    assert two.agrees() == "1"


def test_a_version_made_again_is_not_the_one_that_was_judged(world: World) -> None:
    number = world.candidate("one", world.base)
    source = world.store.client.get_model_version(MODEL, number).source
    world.store.client.delete_registered_model(MODEL)
    world.store.client.create_registered_model(MODEL)
    world.store.client.create_model_version(MODEL, source, run_id=world.store.open_run("another"))
    with pytest.raises(LineageError, match="made again from another run"):
        world.promotions().promote(number, "somebody")


def test_unknown_versions_are_named(world: World) -> None:
    with pytest.raises(LedgerError, match="version 7 of portraits is not in the ledger"):
        world.promotions().promote("7", "somebody")


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("action", "version", "after"), [("promote", "2", "2"), ("rollback", "0", "1"), ("withdraw", "1", "")]
)
def test_a_kill_at_any_boundary_is_reconciled(two: World, boundary: str, action: str, version: str, after: str) -> None:
    before = "1"
    if action == "rollback":
        two.promotions().promote("2", "somebody")
        before, version = "2", "1"
    assert killed(two, action, version, boundary)
    two.promotions().reconcile()
    assert two.agrees() == (before if boundary == "before-intended" else after)
    assert two.promotions().reconcile() == [], "a second look finds nothing to do"


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
    said = two.promotions().reconcile()
    assert "alias champion was on version 2, is on version 1" in said
    assert two.agrees() == "1"


def test_a_move_whose_version_is_gone_is_given_up(two: World) -> None:
    assert killed(two, "promote", "2", "after-intended")
    two.store.client.delete_model_version(MODEL, "2")
    said = two.promotions().reconcile()
    assert any("gave up the promote of version 2" in line for line in said)
    assert two.agrees() == "1"


def test_a_version_that_the_ledger_does_not_know_is_reported(two: World) -> None:
    source = two.store.client.get_model_version(MODEL, "1").source
    two.store.client.create_model_version(MODEL, source, run_id=two.store.open_run("smuggled"))
    assert "version 3 of portraits is in the registry but not in the ledger" in two.promotions().reconcile()
    assert two.store.versions()[2].tags["standing"] == "not in the ledger"


def test_a_champion_whose_weights_were_changed_is_reported(two: World) -> None:
    for path in two.folder.rglob("weights.safetensors"):
        path.write_text("swapped")
    assert any("cannot be trusted" in line for line in two.promotions().reconcile())


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
    assert promote_version(world.context, settings, number) == given
    assert world.agrees() == champion
    aliases = {alias for version in world.store.versions() for alias in version.aliases}
    assert aliases == ({given["alias"]} if given["alias"] else set())


def test_the_step_says_when_its_verdict_is_stale(two: World) -> None:
    third = two.candidate("three", two.digest("one"))
    two.promotions().promote("2", "somebody")
    given = promote_version(two.context, RegistrySettings(model_name=MODEL), third)
    assert given["alias"] == "" and given["stale"].startswith("stale")
