"""The world that is tampered with: every kind of entry, three real versions, a champion and a former one.

Version 1 was champion, 2 is, 3 was rejected. Tests change it in place, and it is put back after each.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from lineage.embedded import Embedded
from lineage.entries import Entry, Leased, entry_digest
from lineage.signing import open_signer, sign_bytes
from tests.audit.world import GATE, MODEL, TERMS, World, draw_pictures

FORGERS = ("run", "gate", "promotion")
"""Roles whose keys the third adversary holds."""


def build(folder: Path) -> World:
    """Make it in ``folder``."""
    world = World(folder)
    draw_pictures(folder / "pictures")
    home = world.home
    home.open("tests")
    home.rotate("run")
    home.revoke("gate", 2, "it lay about")
    home.set_policy(MODEL, TERMS, GATE.model_dump(mode="json"), "for tests")
    world.retrain("run-1", [0, 1, 5], 0.3)
    world.retrain("run-2", [1, 2, 5], 0.3, incumbent=world.candidates["1"])
    world.retrain("run-3", [2, 5], -0.4, incumbent=world.candidates["2"], promote=False)
    leased = Leased(model=MODEL, run="run-4", expires=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    home.open("tests").append(leased, open_signer(home.uri("run")))
    home.checkpoint()
    assert world.audit("2").holds
    return world


CHANGES = itertools.count(1_000_000, 1_000)


def restore(folder: Path, pristine: dict[Path, bytes]) -> None:
    """Put every file back as it was."""
    for path in [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]:
        if path.relative_to(folder) not in pristine:
            path.unlink()
    wanted = {folder / parent for name in pristine for parent in name.parents}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and path not in wanted and not list(path.iterdir()):
            path.rmdir()
    for name, content in pristine.items():
        path = folder / name
        if (
            path.is_symlink()
            or not path.is_file()
            or path.stat().st_size != len(content)
            or path.read_bytes() != content
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            if (path.exists() or path.is_symlink()) and path.suffix != ".db":
                path.unlink()
            path.write_bytes(changed_later(content) if path.suffix == ".db" else content)


def changed_later(database: bytes) -> bytes:
    """An SQLite database with another change counter (its file format, section 1.3), so that no reader's cache fits."""
    counter = next(CHANGES).to_bytes(4, "big")
    return database[:24] + counter + database[28:92] + counter + database[96:]


def kept(folder: Path) -> dict[Path, bytes]:
    """Every file's content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_rows(home: Embedded, entries: Iterable[Entry]) -> None:
    """Have the database hold these entries, as its owner can."""
    with sqlite3.connect(home.folder / "ledger.db") as database:
        for verb in ("UPDATE", "DELETE"):
            database.execute(f"DROP TRIGGER IF EXISTS triptych_no_{verb}")
        database.execute("DELETE FROM triptych_ledger")
        database.executemany(
            "INSERT INTO triptych_ledger VALUES (?, ?, ?, ?)",
            # Rows as such can repeat nothing; so what an entry says of its place is only in its text.
            [(row, e.ledger, f"{row}", e.model_dump_json()) for row, e in enumerate(entries)],
        )


def forgers(home: Embedded) -> dict[str, Signer]:
    """Key id -> signer, of all keys that the third adversary holds, the old ones too."""
    signers = [open_signer(home.uri(role)) for role in FORGERS]
    return {str(signer.public_key.keyid): signer for signer in signers}


def signed_anew(entries: Iterable[Entry], start: int, signers: dict[str, Signer]) -> list[Entry]:
    """Number, chain and sign again from entry ``start`` on, as far as the keys go."""
    made: list[Entry] = []
    for index, entry in enumerate(entries):
        if index >= start:
            place = {"index": index, "previous": entry_digest(made[-1]) if made else ""}
            entry = entry.model_copy(update=place)
            if entry.key in signers:
                signature = sign_bytes(entry.signed_bytes(), signers[entry.key])
                entry = entry.model_copy(update={"signature": signature})
        made.append(entry)
    return made


def said(entry: Entry, changes: Mapping[str, Any]) -> Entry:
    """With other words; not checked, as a row of a database is not."""
    return entry.model_copy(update={"body": entry.body.model_copy(update=changes)})


def changed_text(entry: Entry) -> Entry:
    """Another value in the first text that the entry says; in one that holds no text of its own, other keys."""
    texts = {n: v for n, v in entry.body if isinstance(v, str) and v and n not in ("kind", "of", "action")}
    for name, text in texts.items():
        return said(entry, {name: text[:-1] + ("0" if text[-1] != "0" else "1")})
    return said(entry, {"keys": {}})


def older(entries: list[Entry], at: int) -> Entry:
    """What an earlier entry said, best one of the same kind, in this one's place."""
    kind = [entry for entry in entries[:at] if entry.body.kind == entries[at].body.kind]
    before = (kind or entries[max(at - 1, 0) : max(at, 1)])[0]
    return entries[at].model_copy(update={"body": before.body})


def signed_as(entry: Entry, other: Entry) -> Entry:
    """With another entry's signature."""
    return entry.model_copy(update={"signature": other.signature})


def swapped(entries: list[Entry], at: int) -> list[Entry]:
    """This entry's and the last other one's words exchanged."""
    other = len(entries) - 1 if at != len(entries) - 1 else at - 1
    made = list(entries)
    for here, there in ((at, other), (other, at)):
        words = {"body": entries[there].body, "key": entries[there].key}
        made[here] = entries[here].model_copy(update=words)
    return made


OPERATIONS: dict[str, Callable[[list[Entry], int], list[Entry]]] = {
    "flip": lambda e, at: [*e[:at], changed_text(e[at]), *e[at + 1 :]],
    "sign otherwise": lambda e, at: [
        *e[:at],
        e[at].model_copy(update={"signature": e[at - 1].signature}),
        *e[at + 1 :],
    ],
    "delete": lambda e, at: [*e[:at], *e[at + 1 :]],
    "insert": lambda e, at: [*e[: at + 1], e[at], *e[at + 1 :]],
    "reorder": lambda e, at: [*e[:at], e[at + 1], e[at], *e[at + 2 :]] if at + 1 < len(e) else [*e[:-2], e[-1], e[-2]],
    "truncate": lambda e, at: e[:at],
    "older version": lambda e, at: [*e[:at], older(e, at), *e[at + 1 :]] if at else e[1:],
    "swap": swapped,
}
"""What can be done to the entry at a place of the ledger."""
