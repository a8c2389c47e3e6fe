"""Attacks on what the ledger accepts, with one stolen key each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lineage.embedded import Embedded
from lineage.entries import Closed, Entry, KeyRevoked, Leased, LedgerError
from lineage.rules import LONGEST_LEASE
from lineage.signing import open_signer, sign_bytes
from lineage.witness import verify_entries
from tests.lineage.test_ledger import BASE, ONE, candidate, move, recorded, say
from tests.lineage.worlds import MODEL, World
from tests.tampering.world import write_rows


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


def said_at(home: Embedded, body: Any, time: str, role: str = "run") -> Entry:
    """What a holder of a key writes with a time of his choice."""
    ledger, signer = home.open(), open_signer(home.uri(role))
    state = ledger.state
    made = {"ledger": state.ledger, "index": state.size, "previous": state.head, "time": time}
    entry = Entry.model_validate(made | {"body": body, "key": signer.public_key.keyid})
    entry = entry.model_copy(update={"signature": sign_bytes(entry.signed_bytes(), signer)})
    ledger.accept(entry)
    return entry


def wait_out(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    later = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="milliseconds")
    monkeypatch.setattr("lineage.ledger.now", lambda: later)


def test_a_lease_written_in_another_form_lapses_too(home: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are compared as text: 2026-W49-4 (six days off) lies behind every other day of 2026."""
    year, week, day = (datetime.now(UTC) + timedelta(days=5)).isocalendar()
    try:
        say(home, "run", Leased(model="m", run="thief", expires=f"{year}-W{week:02}-{day}T00:00:00.000+00:00"))
    except LedgerError:
        return  # another form is refused: fine
    wait_out(monkeypatch, LONGEST_LEASE.days + 3)
    say(home, "run", Leased(model="m", run="honest", expires=datetime.now(UTC).isoformat(timespec="milliseconds")))


def test_a_lease_dated_in_the_future_does_not_last_for_ever(home: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length is taken from the entry's own time, which its writer chooses."""
    try:
        said_at(
            home,
            Leased(model="m", run="thief", expires="2999-01-07T00:00:00.000+00:00"),
            "2999-01-01T00:00:00.000+00:00",
        )
    except LedgerError:
        return
    wait_out(monkeypatch, LONGEST_LEASE.days + 1)
    say(home, "run", Leased(model="m", run="honest", expires=datetime.now(UTC).isoformat(timespec="milliseconds")))


def test_a_lease_is_not_taken_over_by_a_date_in_the_future(home: Embedded) -> None:
    expires = (datetime.now(UTC) + timedelta(hours=3)).isoformat(timespec="milliseconds")
    say(home, "run", Leased(model="m", run="honest", expires=expires))
    later = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(LedgerError):
        said_at(
            home, Leased(model="m", run="other", expires=later.isoformat()), later.isoformat(timespec="milliseconds")
        )


def test_a_run_closed_by_somebody_else_approves_nothing(home: Embedded) -> None:
    """A stolen run key closes the run beforehand; its own automatic promotion then counts as a person's approval."""
    candidate(home, "1", ONE, BASE)
    say(home, "run", Closed(run="r1", outcome="failed"))
    say(home, "promotion", move("1", ONE, ("", BASE), user="r1", run="r1"))
    assert not home.open().state.approved


def test_a_ledger_cut_short_that_grew_again_is_told_by_the_witness(home: Embedded, tmp_path: Path) -> None:
    """No key: rows taken off the end and the marks removed; honest runs then write past it, and tell the witness."""
    for number in range(3):
        say(home, "run", recorded(f"s{number}"))
    home.checkpoint()
    before = home.open().entries()
    write_rows(home, before[:-2])
    for mark in home.marks.glob("*"):
        mark.unlink()
    for number in range(5):
        say(home, "run", recorded(f"later{number}"))
    try:
        home.checkpoint()
    except LedgerError:
        return
    with pytest.raises(LedgerError, match="rewritten or forked"):
        verify_entries(home.open().entries(), home.root, home.witness.folder)


def test_a_key_revoked_twice_stays_distrusted(home: Embedded) -> None:
    """Distrusted from its first entry on, then once more from a later one: its envelopes count again."""
    from lineage.signing import read_public

    home.open()
    keyid = read_public(home.keys / "gate.pub").keyid
    say(home, "root", KeyRevoked(key=keyid, since=0, reason="stolen"))
    say(home, "root", KeyRevoked(key=keyid, since=10_000, reason="again"))
    assert keyid not in [key.keyid for key in home.open().state.keys_of("gate")]


def test_withdrawn_weights_stay_in_the_channel_when_their_registration_falls(tmp_path: Path) -> None:
    """The channel lists withdrawn digests of versions that count; a revocation takes them off the list."""
    world = World(tmp_path)
    world.home.open()
    since = world.home.open().state.size
    version = world.candidate("one", world.base)
    world.mover().move("promote", version)
    world.mover().move("withdraw", version, "consent")
    weights = world.digest("one")
    root = (world.home.channel / "metadata" / "1.root.json").read_bytes()
    from lineage.channel.client import Channel

    def listed() -> tuple[str, ...]:
        channel = Channel(root, str(world.home.channel), tmp_path / "reader")
        channel.refresh()
        return channel.champion(MODEL).withdrawn

    assert weights in listed()
    world.home.revoke("gate", since, "stolen")
    world.mover().reconcile()
    assert weights in world.state.withdrawn
    assert weights in listed(), "readers are not told any more that nobody may use these weights"


def test_weights_withdrawn_from_one_model_are_withdrawn_from_every_channel(tmp_path: Path) -> None:
    """Withdrawal is by digest; another model with the same champion is only put right when it is reconciled itself."""
    from lineage.channel.client import Channel
    from lineage.registry import Registry
    from tests.lineage import worlds

    world = World(tmp_path)
    first = world.candidate("same", world.base)
    world.mover().move("promote", first)
    real = worlds.MODEL
    worlds.MODEL = "twins"
    try:
        twin = world.candidate("same", world.base)
        world.mover().move("promote", twin)
    finally:
        worlds.MODEL = real
    world.mover().move("withdraw", first, "consent")
    root = (world.home.channel / "metadata" / "1.root.json").read_bytes()
    channel = Channel(root, str(world.home.channel), tmp_path / "reader")
    channel.refresh()
    assert world.state.champion("twins") is None
    assert Registry(world.store.tracking_uri, "twins").aliases().get("champion") is None
    assert channel.champion("twins").version == ""
