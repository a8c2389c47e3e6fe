"""Ways round the ledger's rules that were open once, each by somebody who holds some of its keys or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import (
    Abandoned,
    KeyRevoked,
    KeyRotated,
    LedgerError,
    replay,
)
from lineage.signing import key_facts, open_signer, read_key
from lineage.witness import FileWitness, checkpoint, latest_checkpoint
from tests.lineage.test_ledger import BASE, ENVELOPE, ONE, TWO, candidate, move, recorded, say


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
    first = home.open().all[0]
    forged = first.model_copy(update={"body": {"keys": first.body["keys"] | {"root": claimed}}})
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
    assert set(state.records) == {("r1", "plan")}
    assert set(state.void) == {theft, theft + 1, theft + 2}
    with pytest.raises(LedgerError, match="retired"):
        home.open().append(recorded("once more"), his)
    with pytest.raises(LedgerError, match="no run key counts"):
        state.key_of("run")
    ours = CryptoSigner.generate_ecdsa()
    say(home, "root", KeyRotated(of="run", old=stolen.public_key.keyid, new=key_facts(ours.public_key)))
    home.open().append(recorded("gate"), ours)
    assert set(home.open().state.records) == {("r1", "plan"), ("r1", "gate")}


def test_a_withdrawal_cannot_be_taken_back_by_giving_it_up(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    withdrawal = move("1", ONE, ("", ""), action="withdraw", verdict="", reason="no consent")
    say(home, "promotion", withdrawal)
    with pytest.raises(LedgerError, match="is for good"):
        say(home, "promotion", Abandoned(move=withdrawal.move, reason="a change of mind"))
    assert home.open().state.withdrawn == {ONE}


def test_what_was_registered_never_changes(home: Embedded) -> None:
    """Otherwise whoever holds the run key has the champion's number mean other weights, or exchanges its evidence."""
    candidate(home, "1", ONE, BASE)
    registered = home.open().state.versions["m", "1"]
    say(home, "run", registered)
    for change in ({"evidence": {"note": BASE}}, {"mlflow_run": "another"}):
        with pytest.raises(LedgerError, match="never changes"):
            say(home, "run", registered.model_copy(update=change))
    with pytest.raises(LedgerError, match="never changes"):
        candidate(home, "1", TWO, BASE)


def test_a_verdict_keeps_its_meaning(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE, "reject")
    judged = home.open().state.verdicts[ENVELOPE[ONE]]
    with pytest.raises(LedgerError, match="something else of this verdict"):
        say(home, "gate", judged.model_copy(update={"decision": "promote"}))


@pytest.mark.parametrize("change", [{"run": "r2"}, {"model": "another", "version": "1"}])
def test_a_verdict_for_another_run_or_model_registers_nothing(home: Embedded, change: dict[str, str]) -> None:
    candidate(home, "1", ONE, BASE)
    registered = home.open().state.versions["m", "1"]
    with pytest.raises(LedgerError, match="another run, or for another model"):
        say(home, "run", registered.model_copy(update={"version": "2", **change}))


def test_a_revoked_witness_key_does_not_stop_everybody(home: Embedded, tmp_path: Path) -> None:
    witness = FileWitness(tmp_path / "witness")
    checkpoint(home.open().state, witness, open_signer(home.uri("witness")))
    home.revoke("witness", 1, "lost")
    assert latest_checkpoint(witness, home.open().state) is None, "its word is no proof any more"
    made = checkpoint(home.open().state, witness, open_signer(home.uri("witness")))
    assert latest_checkpoint(witness, home.open().state) == made


def test_a_row_that_is_no_entry_is_named(home: Embedded, tmp_path: Path) -> None:
    import sqlite3

    say(home, "run", recorded("plan"))
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_UPDATE")
        database.execute("UPDATE triptych_ledger SET entry = '{}' WHERE position = 1")
    with pytest.raises(LedgerError, match="ledger row 1: this is not a ledger entry"):
        home.open()
