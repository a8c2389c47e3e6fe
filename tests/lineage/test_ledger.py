"""The ledger on a real database: what it accepts, what it refuses, and what it shows when somebody touched it."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import (
    Closed,
    Completed,
    Entry,
    Intended,
    Judged,
    KeyRevoked,
    KeyRotated,
    LedgerError,
    Recorded,
    Registered,
    StaleError,
    replay,
)
from lineage.ledger import Ledger, export, read_export
from lineage.signing import Role, key_facts, open_signer
from lineage.witness import Checkpoint, FileWitness, check_against, checkpoint, latest_checkpoint

BASE, ONE, TWO = (f"sha256:{digit * 64}" for digit in "012")
ENVELOPE = {ONE: f"sha256:{'a' * 64}", TWO: f"sha256:{'b' * 64}"}


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


def say(home: Embedded, role: Role, body: object) -> Entry:
    return home.open().append(body, open_signer(home.uri(role)))  # type: ignore[arg-type]


def recorded(step: str) -> Recorded:
    return Recorded(run="r1", step=step, status="complete", record=BASE)


def candidate(home: Embedded, version: str, weights: str, incumbent: str, decision: str = "promote") -> None:
    verdict = ENVELOPE[weights]
    say(home, "gate", Judged(run="r1", candidate=weights, incumbent=incumbent, decision=decision, verdict=verdict))
    say(
        home,
        "run",
        Registered(
            run="r1",
            model="m",
            version=version,
            candidate=weights,
            verdict=verdict,
            training_key="",
            evaluation_key="",
            mlflow_run="x",
            evidence={},
        ),
    )


def move(version: str, weights: str, before: tuple[str, str], **changes: str) -> Intended:
    said = {
        "move": f"to-{version}",
        "action": "promote",
        "model": "m",
        "version": version,
        "candidate": weights,
        "previous_version": before[0],
        "previous": before[1],
        "verdict": ENVELOPE[weights],
        "user": "somebody",
        "reason": "",
    }
    return Intended.model_validate(said | changes)


def test_a_promotion_follows_its_verdict(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
    say(home, "promotion", Completed(move="to-1"))
    champion = home.open().state.champion("m")
    assert champion and (champion.version, champion.candidate) == ("1", ONE)


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"previous": TWO}, StaleError, "given against"),
        ({"previous_version": "7"}, StaleError, "champion of m is none"),
        ({"candidate": TWO}, LedgerError, "not registered with the weights"),
        ({"verdict": ENVELOPE[TWO]}, LedgerError, "no verdict"),
        ({"model": "another"}, LedgerError, "not registered"),
        ({"action": "rollback"}, LedgerError, "needs a reason"),
        ({"action": "rollback", "reason": "because"}, LedgerError, "never champion"),
    ],
)
def test_a_move_that_its_evidence_does_not_carry_is_refused(
    home: Embedded, changes: dict[str, str], error: type[LedgerError], why: str
) -> None:
    candidate(home, "1", ONE, BASE)
    size = home.open().state.size
    with pytest.raises(error, match=why):
        say(home, "promotion", move("1", ONE, ("", BASE), **changes))
    assert home.open().state.size == size, "nothing was written"


@pytest.mark.parametrize("decision", ["hold", "reject", "invalid"])
def test_only_a_promote_verdict_promotes(home: Embedded, decision: str) -> None:
    candidate(home, "1", ONE, BASE, decision)
    with pytest.raises(LedgerError, match=f"is {decision}, not promote"):
        say(home, "promotion", move("1", ONE, ("", BASE)))


def test_a_role_may_only_say_its_own(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    for role in ("run", "gate", "witness", "root"):
        with pytest.raises(LedgerError, match="only a promotion key may say this"):
            say(home, role, move("1", ONE, ("", BASE)))
    with pytest.raises(LedgerError, match="only a gate key may say this"):
        judged = Judged(run="r1", candidate=TWO, incumbent=BASE, decision="promote", verdict=ENVELOPE[TWO])
        say(home, "run", judged)


def test_an_unknown_key_is_refused(home: Embedded) -> None:
    with pytest.raises(LedgerError, match="does not know"):
        home.open().append(recorded("plan"), CryptoSigner.generate_ecdsa())


def test_a_rotated_key_counts_no_more_and_the_new_one_does(home: Embedded) -> None:
    ledger, old, new = home.open(), open_signer(home.uri("run")), CryptoSigner.generate_ecdsa()
    ledger.append(recorded("plan"), old)
    ledger.append(KeyRotated(of="run", old=old.public_key.keyid, new=key_facts(new.public_key)), old)
    with pytest.raises(LedgerError, match="retired"):
        ledger.append(recorded("late"), old)
    ledger.append(recorded("gate"), new)
    assert set(replay(ledger.all).records) == {("r1", "plan"), ("r1", "gate")}


def test_what_a_revoked_key_said_does_not_count_from_then_on(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
    say(home, "promotion", Completed(move="to-1"))
    gate = open_signer(home.uri("gate")).public_key.keyid
    say(home, "root", KeyRevoked(key=gate, since=1, reason="it was on a lost laptop"))
    state = home.open().state
    assert state.champion("m") is None, "its verdict does not count, nor what rests on it"
    assert set(state.void) == {1, 2, 3, 4}
    with pytest.raises(LedgerError, match="no gate key counts"):
        state.key_of("gate")


def test_only_the_root_revokes(home: Embedded) -> None:
    home.open()
    with pytest.raises(LedgerError, match="only a root key may say this"):
        gate = open_signer(home.uri("gate")).public_key.keyid
        say(home, "run", KeyRevoked(key=gate, since=0, reason="mischief"))


def filled(home: Embedded) -> list[Entry]:
    for step in ("snapshot-data", "plan", "validate-data"):
        say(home, "run", recorded(step))
    say(home, "run", Closed(run="r1", outcome="failed"))
    return home.open().all


TAMPERING: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "flip": lambda e: [*e[:2], e[2].model_copy(update={"body": {**e[2].body, "step": "other"}}), *e[3:]],
    "flip the signature": lambda e: [*e[:2], e[2].model_copy(update={"signature": e[1].signature}), *e[3:]],
    "backdate": lambda e: [*e[:2], e[2].model_copy(update={"time": "2020-01-01T00:00:00.000+00:00"}), *e[3:]],
    "delete": lambda e: [*e[:2], *e[3:]],
    "reorder": lambda e: [*e[:2], e[3], e[2], *e[4:]],
    "repeat": lambda e: [*e[:3], e[2], *e[3:]],
    "renumber after a deletion": lambda e: [
        *e[:2],
        *(entry.model_copy(update={"index": entry.index - 1}) for entry in e[3:]),
    ],
    "behead": lambda e: e[1:],
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_names_the_entry(home: Embedded, how: str) -> None:
    entries = filled(home)
    with pytest.raises(LedgerError, match=r"ledger entry \d"):
        replay(TAMPERING[how](entries))


def test_an_entry_signed_anew_by_a_stranger_is_named(home: Embedded) -> None:
    entries, stranger = filled(home), CryptoSigner.generate_ecdsa()
    forged = entries[2].model_copy(update={"key": stranger.public_key.keyid})
    forged = forged.model_copy(update={"signature": stranger.sign(forged.signed_bytes()).signature})
    with pytest.raises(LedgerError, match="does not know"):
        replay([*entries[:2], forged, *entries[3:]])


def test_a_ledger_cut_short_holds_but_the_witness_and_the_mark_tell(home: Embedded, tmp_path: Path) -> None:
    entries = filled(home)
    witness, signer = FileWitness(tmp_path / "w"), open_signer(home.uri("witness"))
    checkpoint(home.open().state, witness, signer)
    cut = entries[:-1]
    state = replay(cut)
    seen = latest_checkpoint(witness, state)
    assert seen is not None and seen.size == len(entries)
    with pytest.raises(LedgerError, match="were taken off its end"):
        check_against(cut, seen, "the witness")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_DELETE")
        database.execute("DELETE FROM triptych_ledger WHERE position = ?", (len(entries) - 1,))
    with pytest.raises(LedgerError, match="were taken off its end"):
        home.open()


def test_a_history_written_anew_with_the_ledgers_own_key_is_told_by_the_witness(home: Embedded) -> None:
    entries = filled(home)
    seen = Checkpoint(ledger=entries[0].ledger, size=4, head=entries[4].previous, time=entries[3].time)
    run = open_signer(home.uri("run"))
    forged = entries[3].model_copy(update={"body": {**entries[3].body, "step": "another"}})
    forged = forged.model_copy(update={"signature": run.sign(forged.signed_bytes()).signature})
    assert replay([*entries[:3], forged]).size == 4, "the chain itself holds"
    with pytest.raises(LedgerError, match="rewritten or forked"):
        check_against([*entries[:3], forged], seen, "the witness")


def test_a_forged_checkpoint_is_refused(home: Embedded, tmp_path: Path) -> None:
    filled(home)
    witness = FileWitness(tmp_path / "w")
    checkpoint(home.open().state, witness, open_signer(home.uri("run")))
    with pytest.raises(LineageError, match="signature does not hold"):
        latest_checkpoint(witness, home.open().state)


def test_the_database_refuses_to_change_entries(home: Embedded, tmp_path: Path) -> None:
    filled(home)
    with (
        sqlite3.connect(tmp_path / "ledger.db") as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute("UPDATE triptych_ledger SET entry = '{}' WHERE position = 1")


def test_an_export_holds_everything(home: Embedded, tmp_path: Path) -> None:
    entries = filled(home)
    (tmp_path / "export.jsonl").write_text(export(entries))
    assert read_export(tmp_path / "export.jsonl") == entries
    lines = (tmp_path / "export.jsonl").read_text().splitlines()
    (tmp_path / "export.jsonl").write_text("\n".join([lines[0], "{}", *lines[2:]]))
    with pytest.raises(LedgerError, match="line 2"):
        read_export(tmp_path / "export.jsonl")


def test_missing_pieces_are_named(home: Embedded, tmp_path: Path) -> None:
    home.open()
    (tmp_path / "keys" / "root.pub").rename(tmp_path / "kept")
    with pytest.raises(LineageError, match=r"has no root\.pub"):
        home.open()
    (tmp_path / "kept").rename(tmp_path / "keys" / "root.pub")
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(LineageError, match=r"ledger\.db is gone"):
        home.open()


def test_an_emptied_ledger_is_not_begun_anew(home: Embedded, tmp_path: Path) -> None:
    home.open()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TABLE triptych_ledger")
    with pytest.raises(LedgerError, match="is empty, but had entries before"):
        home.open("another reader")


def test_a_private_key_that_is_not_its_public_half_is_refused(home: Embedded, tmp_path: Path) -> None:
    home.open()
    (tmp_path / "keys" / "run.pem").write_bytes((tmp_path / "keys" / "gate.pem").read_bytes())
    with pytest.raises(LineageError, match="no usable key"):
        open_signer(home.uri("run"))
    other = json.loads((tmp_path / "keys" / "gate.pub").read_text())
    mixed = json.loads((tmp_path / "keys" / "run.pub").read_text()) | {"keyval": other["keyval"]}
    (tmp_path / "keys" / "run.pub").write_text(json.dumps(mixed))
    with pytest.raises(LineageError, match="another key's id"):
        open_signer(home.uri("run"))


def test_a_ledger_of_another_root_is_refused(home: Embedded) -> None:
    home.open()
    with pytest.raises(LedgerError, match="another root key"):
        Ledger(home.url, root="0" * 64)


def append_many(folder: str, name: str, count: int) -> None:
    home = Embedded(Path(folder))
    ledger, signer = Ledger(home.url), open_signer(home.uri("run"))
    for number in range(count):
        ledger.append(Recorded(run=name, step=f"s{number}", status="complete", record=BASE), signer)


def test_eight_writers_make_one_chain_and_lose_nothing(home: Embedded, tmp_path: Path) -> None:
    home.open()
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(str(tmp_path), f"w{n}", 100)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert len(replay(home.open().all).records) == 800
