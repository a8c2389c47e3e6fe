"""Ways round the ledger's rules that were open once, each by somebody who holds some of its keys or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import KeyRevoked, KeyRotated, LedgerError, Opened
from lineage.rules import replay
from lineage.signing import key_facts, open_signer, read_key
from lineage.witness import FileWitness, WitnessWriter, hear
from tests.lineage.test_ledger import BASE, ENVELOPE, ONE, TWO, candidate, judgement, move, recorded, registration, say


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


def test_a_key_cannot_claim_the_id_of_another(home: Embedded) -> None:
    """Ids of OpenPGP keys do not follow from their content, so that one could claim to be the root key."""
    home.open()
    claimed = {
        "keyid": home.root,
        "keytype": "rsa",
        "scheme": "pgp+rsa-pkcsv1.5",
        "keyval": {"public": {"n": "c1" * 256, "e": "010001"}},
    }
    with pytest.raises(LineageError, match="does not follow from its content"):
        read_key(claimed)
    first = home.open().entries()[0]
    assert isinstance(first.body, Opened)
    forged = first.model_copy(update={"body": Opened(keys=first.body.keys | {"root": claimed})})
    with pytest.raises(LedgerError, match=r"ledger entry 0 \(opened\): this is not a public key"):
        replay([forged])


def test_a_thief_who_renews_a_stolen_key_does_not_escape_its_revocation(home: Embedded) -> None:
    home.open()
    stolen, his = open_signer(home.uri("run")), CryptoSigner.generate_ecdsa()
    say(home, "run", recorded("plan"))
    theft = say(home, "run", recorded("forged")).index
    ledger = home.open()
    ledger.append(KeyRotated(of="run", old=stolen.public_key.keyid, new=key_facts(his.public_key)), stolen)
    ledger.append(recorded("forged again"), his)
    say(home, "root", KeyRevoked(key=stolen.public_key.keyid, since=theft, reason="stolen"))
    state = home.open().state
    assert state.records == {"r1": {"plan": BASE}}
    assert set(state.void) == {theft, theft + 1, theft + 2}
    with pytest.raises(LedgerError, match="retired"):
        home.open().append(recorded("once more"), his)
    with pytest.raises(LedgerError, match="no run key counts"):
        state.key_of("run")
    ours = CryptoSigner.generate_ecdsa()
    say(home, "root", KeyRotated(of="run", old=stolen.public_key.keyid, new=key_facts(ours.public_key)))
    home.open().append(recorded("gate"), ours)
    assert set(home.open().state.records["r1"]) == {"plan", "gate"}


def test_a_withdrawal_outlives_the_key_that_said_it(home: Embedded) -> None:
    """Otherwise whoever loses a key, or says so, brings withdrawn weights back."""
    candidate(home, "1", ONE, BASE)
    withdrawal = say(home, "promotion", move("1", ONE, ("", ""), action="withdraw", verdict="", reason="no consent"))
    say(home, "root", KeyRevoked(key=withdrawal.key, since=withdrawal.index, reason="lost"))
    state = home.open().state
    assert state.withdrawn == {ONE} and withdrawal.index in state.void


def test_what_was_registered_never_changes(home: Embedded) -> None:
    """Otherwise whoever holds the run key has the champion's number mean other weights, or exchanges its evidence."""
    candidate(home, "1", ONE, BASE)
    registered = home.open().state.versions["m"]["1"]
    say(home, "run", registered)
    for change in ({"evidence": {"note": BASE}}, {"mlflow_run": "another"}):
        with pytest.raises(LedgerError, match="never changes"):
            say(home, "run", registered.model_copy(update=change))
    say(home, "gate", judgement(TWO, BASE))
    with pytest.raises(LedgerError, match="never changes"):
        say(home, "run", registration("1", TWO))


def test_a_verdict_keeps_its_meaning(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE, "reject")
    judged = home.open().state.verdicts[ENVELOPE[ONE]]
    with pytest.raises(LedgerError, match="something else of this verdict"):
        say(home, "gate", judged.model_copy(update={"decision": "promote"}))


@pytest.mark.parametrize("change", [{"run": "r2"}, {"model": "another", "version": "1"}])
def test_a_verdict_for_another_run_or_model_registers_nothing(home: Embedded, change: dict[str, str]) -> None:
    candidate(home, "1", ONE, BASE)
    registered = home.open().state.versions["m"]["1"]
    with pytest.raises(LedgerError, match="another run, or for another model"):
        say(home, "run", registered.model_copy(update={"version": "2", **change}))


def test_a_revoked_witness_key_does_not_stop_everybody(home: Embedded, tmp_path: Path) -> None:
    witness, state = FileWitness(tmp_path / "witness"), home.open().state
    WitnessWriter(witness, open_signer(home.uri("witness"))).write(state)
    home.revoke("witness", 1, "lost")
    told = hear(witness, home.open().state)
    assert told.latest is None and told.unreadable == {}, "its word is no proof any more, and no alarm"
    made = WitnessWriter(witness, open_signer(home.uri("witness"))).write(home.open().state)
    assert hear(witness, home.open().state).latest == made


def test_a_row_that_is_no_entry_is_named(home: Embedded, tmp_path: Path) -> None:
    import sqlite3

    say(home, "run", recorded("plan"))
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_UPDATE")
        database.execute("UPDATE triptych_ledger SET entry = '{}' WHERE position = 1")
    with pytest.raises(LedgerError, match="ledger row 1: this is not a ledger entry"):
        home.open()
