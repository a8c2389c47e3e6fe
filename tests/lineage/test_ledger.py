"""The ledger on a real database: what it accepts, what it refuses, and what it shows when somebody touched it."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signature, Signer

from lineage.clock import now
from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import (
    BusyError,
    Closed,
    Entry,
    Judged,
    KeyRevoked,
    KeyRotated,
    Leased,
    LedgerError,
    Moved,
    PolicySet,
    Recorded,
    Registered,
    StaleError,
    entry_digest,
)
from lineage.ledger import Ledger
from lineage.memory import WORTH, Memory
from lineage.policy import policy_digest
from lineage.records import _ledger, recording
from lineage.rules import extend, replay
from lineage.signing import Role, key_facts, open_signer, sign_bytes
from lineage.state import State
from lineage.stores import export, read_export
from lineage.witness import Checkpoint, FileWitness, WitnessWriter, check_against, hear

EVALUATION, GATE = {"evaluation_set": "sha256:0"}, {"alpha": 0.025}
POLICY = policy_digest(EVALUATION, GATE)
BASE, ONE, TWO = (f"sha256:{digit * 64}" for digit in "012")
ENVELOPE = {ONE: f"sha256:{'a' * 64}", TWO: f"sha256:{'b' * 64}"}


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


def say(home: Embedded, role: Role, body: object) -> Entry:
    return home.open().append(body, open_signer(home.uri(role)))  # type: ignore[arg-type]


def recorded(step: str) -> Recorded:
    return Recorded(run="r1", step=step, status="complete", record=BASE)


def pinned(digest: str = POLICY) -> PolicySet:
    return PolicySet(model="m", digest=digest, gate=GATE, evaluation=EVALUATION, user="somebody", reason="first")


def judgement(weights: str, incumbent: str, decision: str = "promote", model: str = "m") -> Judged:
    return Judged(
        run="r1",
        model=model,
        candidate=weights,
        incumbent=incumbent,
        decision=decision,
        verdict=ENVELOPE[weights],
        evaluation="",
        policy=POLICY,
    )


def candidate(home: Embedded, version: str, weights: str, incumbent: str, decision: str = "promote") -> None:
    say(home, "promotion", pinned())
    say(home, "gate", judgement(weights, incumbent, decision))
    say(home, "run", registration(version, weights))


def registration(version: str, weights: str) -> Registered:
    return Registered(
        run="r1",
        model="m",
        version=version,
        candidate=weights,
        folder=weights,
        verdict=ENVELOPE[weights],
        training_key="",
        evaluation_terms="",
        mlflow_run="x",
        evidence={},
    )


def move(version: str, weights: str, before: tuple[str, str], **changes: str) -> Moved:
    said = {
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
    return Moved.model_validate(said | changes)


def changed(entry: Entry, **fields: str) -> Entry:
    """The entry, saying something else."""
    return entry.model_copy(update={"body": entry.body.model_copy(update=fields)})


def test_a_promotion_follows_its_verdict(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
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
        say(home, "run", judgement(TWO, BASE))


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
    assert set(replay(ledger.entries()).records["r1"]) == {"plan", "gate"}


def test_what_a_revoked_key_said_does_not_count_from_then_on(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
    gate = open_signer(home.uri("gate")).public_key.keyid
    say(home, "root", KeyRevoked(key=gate, since=2, reason="it was on a lost laptop"))
    state = home.open().state
    assert state.champion("m") is None, "its verdict does not count, nor what rests on it"
    assert set(state.void) == {2, 3, 4}
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
    return home.open().entries()


TAMPERING: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "flip": lambda e: [*e[:2], changed(e[2], step="other"), *e[3:]],
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
    forged = forged.model_copy(update={"signature": sign_bytes(forged.signed_bytes(), stranger)})
    with pytest.raises(LedgerError, match="does not know"):
        replay([*entries[:2], forged, *entries[3:]])


def test_a_ledger_cut_short_holds_but_the_witness_and_the_mark_tell(home: Embedded, tmp_path: Path) -> None:
    entries = filled(home)
    witness, signer = FileWitness(tmp_path / "w"), open_signer(home.uri("witness"))
    WitnessWriter(witness, signer).write(home.open().state)
    state = replay(entries[:-1])
    seen = hear(witness, state).latest
    assert seen is not None and seen.size == len(entries)
    with pytest.raises(LedgerError, match="were taken off its end"):
        check_against(state, lambda index: entry_digest(entries[index]), seen, "the witness")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_DELETE")
        database.execute("DELETE FROM triptych_ledger WHERE position = ?", (len(entries) - 1,))
    with pytest.raises(LedgerError, match="were taken off its end"):
        home.open()


def test_a_history_written_anew_with_the_ledgers_own_key_is_told_by_the_witness(home: Embedded) -> None:
    entries = filled(home)
    seen = Checkpoint(ledger=entries[0].ledger, size=4, head=entries[4].previous, time=entries[3].time)
    run = open_signer(home.uri("run"))
    forged = changed(entries[3], step="another")
    forged = forged.model_copy(update={"signature": sign_bytes(forged.signed_bytes(), run)})
    state = replay([*entries[:3], forged])
    assert state.size == 4, "the chain itself holds"
    with pytest.raises(LedgerError, match="rewritten or forked"):
        check_against(state, lambda index: entry_digest(entries[index]), seen, "the witness")


def test_a_forged_checkpoint_is_no_word_of_the_witness(home: Embedded, tmp_path: Path) -> None:
    filled(home)
    witness = FileWitness(tmp_path / "w")
    WitnessWriter(witness, open_signer(home.uri("run"))).write(home.open().state)
    told = hear(witness, home.open().state)
    assert told.latest is None
    assert "signature does not hold" in next(iter(told.unreadable.values()))


def test_a_name_that_somebody_took_beforehand_does_not_silence_the_witness(home: Embedded, tmp_path: Path) -> None:
    filled(home)
    state, witness = home.open().state, FileWitness(tmp_path / "w")
    for content in (b"", b"{}"):
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / f"{state.ledger}-{state.size:010d}.json").write_bytes(content)
        WitnessWriter(witness, open_signer(home.uri("witness"))).write(state)
        told = hear(witness, state)
        assert told.latest and told.latest.size == state.size
        assert len(told.unreadable) == 1, "and what lies in its place is named"


def test_a_checkpoint_under_another_name_is_named(home: Embedded, tmp_path: Path) -> None:
    filled(home)
    state, witness = home.open().state, FileWitness(tmp_path / "w")
    WitnessWriter(witness, open_signer(home.uri("witness"))).write(state)
    kept = next((tmp_path / "w").glob("*.json"))
    kept.rename(kept.with_name(f"{state.ledger}-{state.size + 7:010d}.json"))
    told = hear(witness, state)
    assert told.latest is None
    assert "under another name" in next(iter(told.unreadable.values()))


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
        database.execute("DROP TRIGGER triptych_no_DELETE")
        database.execute("DELETE FROM triptych_ledger")
    with pytest.raises(LedgerError, match="is empty: it was never opened, or everything was taken out"):
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
        Ledger.open(home.url, root="0" * 64).refresh()


def append_many(folder: str, name: str, count: int) -> None:
    home = Embedded(Path(folder))
    memory = Memory(home.marks, "writers")
    ledger, signer = Ledger.open(home.url, home.root, memory), open_signer(home.uri("run"))
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
    assert sum(map(len, replay(home.open().entries()).records.values())) == 800


def lease(run: str, hours: float) -> Leased:
    expires = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="milliseconds")
    return Leased(model="m", run=run, expires=expires)


def test_one_run_at_a_time_has_a_model(home: Embedded) -> None:
    say(home, "run", lease("r1", 1))
    say(home, "run", lease("r1", 2))
    with pytest.raises(BusyError, match="run r1 has m to itself until"):
        say(home, "run", lease("r2", 1))
    say(home, "run", Leased(model="another", run="r2", expires=lease("r2", 1).expires))
    say(home, "run", Closed(run="r1", outcome="judged"))
    say(home, "run", lease("r2", 1))
    assert home.open().state.leases["m"].run == "r2"


def test_a_lease_of_a_dead_run_lapses(home: Embedded) -> None:
    say(home, "run", Leased(model="m", run="r1", expires=now()))
    say(home, "run", lease("r2", 1))
    assert home.open().state.leases["m"].run == "r2"


@pytest.mark.parametrize("expires", ["", "tomorrow", "2999-01-01T00:00:00.000+00:00", "2999-01-01T00:00:00"])
def test_a_lease_has_an_end_in_sight(home: Embedded, expires: str) -> None:
    with pytest.raises(LedgerError, match=r"expires at no time|is longer than"):
        say(home, "run", Leased(model="m", run="r1", expires=expires))


def test_a_policy_is_pinned_by_promotion_or_root_key_and_by_its_digest(home: Embedded) -> None:
    say(home, "root", pinned())
    for role in ("run", "gate", "witness"):
        with pytest.raises(LedgerError, match="only a promotion or root key may say this"):
            say(home, role, pinned())
    with pytest.raises(LedgerError, match="its digest is not that of the settings"):
        say(home, "promotion", pinned("sha256:0"))


def test_only_what_stands_before_a_revocation_is_left_out(home: Embedded) -> None:
    candidate(home, "1", ONE, BASE)
    home.revoke("run", 3, "it was stolen")
    assert home.open().state.registered("m", "1") is None
    with pytest.raises(LedgerError, match="not registered with the weights"):
        say(home, "promotion", move("1", ONE, ("", BASE)))
    ledger = home.open()
    forged = ledger.entries()[-1].model_copy(
        update={"index": ledger.state.size, "previous": ledger.state.head, "body": move("1", ONE, ("", BASE))}
    )
    signer = open_signer(home.uri("promotion"))
    forged = forged.model_copy(update={"key": signer.public_key.keyid, "signature": ""})
    forged = forged.model_copy(update={"signature": sign_bytes(forged.signed_bytes(), signer)})
    with pytest.raises(LedgerError, match="not registered with the weights"):
        replay([*ledger.entries(), forged])


def test_the_twin_of_a_signature_is_refused(home: Embedded) -> None:
    entries = filled(home)
    r, s = decode_dss_signature(bytes.fromhex(entries[-1].signature))
    order = int("FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551", 16)
    for twin in (encode_dss_signature(r, order - s).hex(), entries[-1].signature.upper()):
        with pytest.raises(LedgerError, match="its signature does not hold"):
            replay([*entries[:-1], entries[-1].model_copy(update={"signature": twin})])


@pytest.mark.parametrize(
    "url", ["mysql+pymysql://u:secret@h/db", "mariadb://h/db", "mssql://h/db", "nonsense", "oracle://h"]
)
def test_only_databases_that_tell_letters_apart_hold_a_ledger(url: str) -> None:
    with pytest.raises(LedgerError, match=r"use SQLite or PostgreSQL|is no database") as error:
        Ledger.open(url)
    assert "secret" not in str(error.value)


def test_a_private_key_that_is_gone_is_not_made_again(home: Embedded, tmp_path: Path) -> None:
    home.open()
    before = (tmp_path / "keys" / "run.pub").read_bytes()
    (tmp_path / "keys" / "run.pem").rename(tmp_path / "kept")
    with pytest.raises(LineageError, match="no usable key"):
        home.open().signer("run", home.uri("run"))
    assert (tmp_path / "keys" / "run.pub").read_bytes() == before
    (tmp_path / "kept").rename(tmp_path / "keys" / "run.pem")
    say(home, "run", recorded("plan"))


def test_the_root_key_may_be_kept_elsewhere(home: Embedded, tmp_path: Path) -> None:
    home.open()
    (tmp_path / "keys" / "root.pem").unlink()
    candidate(home, "1", ONE, BASE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
    home.rotate("gate")
    with pytest.raises(LineageError, match="no usable key"):
        home.revoke("run", 1, "lost")


def test_a_rotation_that_died_is_finished(home: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.open()
    with monkeypatch.context() as patched:
        patched.setattr(Embedded, "_finish_rotation", lambda *_: None)
        home.rotate("run")
    say(home, "run", recorded("plan"))
    assert not list((tmp_path / "keys" / "new").glob("run.*"))


def test_a_long_ledger_is_remembered_and_not_believed_from_a_stranger(home: Embedded, tmp_path: Path) -> None:
    ledger = home.open("writer")
    for number in range(WORTH + 20):
        ledger.append(recorded(f"s{number}"), open_signer(home.uri("run")))
    assert home.open("reader").state.size == ledger.state.size
    remembered = tmp_path / "marks" / "reader.state"
    assert remembered.exists()
    say(home, "run", recorded("later"))
    assert home.open("reader").state.records["r1"]["later"] == BASE
    content = remembered.read_bytes()
    remembered.write_bytes(content.replace(b"signatures", b"signaturez"))
    assert home.open("reader").state.size == ledger.state.size + 1, "the whole ledger was read instead"
    home.rotate("run")
    remembered.write_bytes(content)
    assert home.open("reader").state.size == ledger.state.size + 2, "a former key's memory is not believed"


def test_a_run_checks_a_long_ledger_once(home: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its steps is a process of its own, which opens the ledger and appends to it."""
    ledger, steps = home.open("writer"), 12
    for number in range(3 * WORTH):
        ledger.append(recorded(f"s{number}"), open_signer(home.uri("run")))
    checked: list[Entry] = []

    def counted(state: State, entries: Iterable[Entry], *more: Any) -> None:
        entries = list(entries)
        checked.extend(entries)
        extend(state, entries, *more)

    monkeypatch.setattr("lineage.ledger.extend", counted)
    context = home.context("the-run", str(tmp_path / "records"), "unused")
    for number in range(steps):
        _ledger.cache_clear()
        context.open_ledger().append(recorded(f"step-{number}"), context.signer("run"))
    length = ledger.refresh().size
    assert length < len(checked) < 1.2 * length, "the whole of it once, and what is new"


def test_what_is_remembered_is_of_this_ledger(home: Embedded, tmp_path: Path) -> None:
    ledger = home.open("writer")
    for number in range(WORTH + 20):
        ledger.append(recorded(f"s{number}"), open_signer(home.uri("run")))
    home.open("reader")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_DELETE")
        database.execute("DELETE FROM triptych_ledger WHERE position > 100")
    with pytest.raises(LedgerError, match="were taken off its end"):
        home.open("reader")


class Vault(Signer):
    """A key service of this process: it signs, and no private key leaves it."""

    keys: dict[str, CryptoSigner] = {}  # noqa: RUF012

    def __init__(self, name: str, public: Key) -> None:
        self.name, self._public = name, public

    @property
    def public_key(self) -> Key:
        return self._public

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Vault:
        return cls(priv_key_uri.removeprefix("vault:"), public_key)

    def sign(self, payload: bytes) -> Signature:
        return self.keys[self.name].sign(payload)


def test_keys_may_be_kept_in_a_key_service(home: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.open()
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "vault", Vault)
    roles = ("run", "gate", "promotion", "witness")
    for role in roles:
        private = home.keys / f"{role}.pem"
        key = load_pem_private_key(private.read_bytes(), None)
        monkeypatch.setitem(Vault.keys, role, CryptoSigner(key))
        private.unlink()
    keys = {role: f"vault:{role}" for role in roles}
    context = home.context("the-run", str(tmp_path / "records"), "unused").model_copy(update={"keys": keys})
    with recording(context, "plan", {}):
        pass
    context.open_ledger().append(judgement(ONE, BASE), context.signer("gate"))
    for role in ("promotion", "witness"):
        assert context.signer(role).public_key == home.open().state.key_of(role)
    assert list(home.open().state.records["the-run"]) == ["plan"]
    monkeypatch.setitem(Vault.keys, "run", CryptoSigner.generate_ecdsa())
    with pytest.raises(LedgerError, match="its signature does not hold"):
        context.open_ledger().append(recorded("another"), context.signer("run"))
