"""The ledger: the append-only, hash-chained, signed list that says what was done and who is champion.

It lies in a database (SQLite by default, PostgreSQL in a cluster) or behind a governed MLflow server, which is asked
over HTTP. Whoever reads it checks every entry; whoever writes holds the key of the role that may say so.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import sqlalchemy as sql
from pydantic import ValidationError
from securesystemslib.signer import Key, Signer
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from lineage.entries import NAMES, Body, Entry, LedgerError, Opened, State, extend, replay
from lineage.signing import key_facts

API = "/api/2.0/triptych"
PATIENCE = 30.0
"""Seconds to wait for another writer."""

Maker = Callable[[list[Entry]], Entry]
"""Makes the next entry from those that came since it last looked."""


class ConflictError(LedgerError):
    """Another entry came first; read on and try again."""


class Store(Protocol):
    """Where the entries are."""

    def entries(self, after: int) -> list[Entry]:
        """Those from index ``after`` on."""
        ...

    def append(self, after: int, make: Maker) -> Entry:
        """Append what ``make`` gives from the entries since ``after``; nothing comes between the two."""
        ...


TABLES = sql.MetaData()
ENTRIES = sql.Table(
    "triptych_ledger",
    TABLES,
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("ledger", sql.String(64), nullable=False),
    sql.Column("previous", sql.String(80), nullable=False),
    sql.Column("entry", sql.Text, nullable=False),
    sql.UniqueConstraint("ledger", "previous"),
)
GUARDS = {
    "sqlite": [
        f"CREATE TRIGGER triptych_no_{verb} BEFORE {verb} ON triptych_ledger "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION triptych_append_only() RETURNS trigger AS $$ "
        "BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER triptych_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON triptych_ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION triptych_append_only()",
    ],
}
"""What keeps honest mistakes out; an owner of the database can drop it, which the chain and the witness then show."""
for _dialect, _statements in GUARDS.items():
    for _statement in _statements:
        sql.event.listen(ENTRIES, "after_create", sql.DDL(_statement).execute_if(dialect=_dialect))


class SqlStore:
    """Entries in a database."""

    def __init__(self, url: str) -> None:
        self.url = url
        waiting = {"timeout": PATIENCE} if url.startswith("sqlite") else {}
        self.engine = sql.create_engine(url, connect_args=waiting)

    def create(self) -> None:
        """Make the table if it is not there."""
        with self._errors():
            TABLES.create_all(self.engine)

    def entries(self, after: int) -> list[Entry]:
        with self._errors(), self.engine.connect() as connection:
            return self._entries(connection, after)

    def append(self, after: int, make: Maker) -> Entry:
        with self._errors(), self._exclusive() as connection:
            entry = make(self._entries(connection, after))
            connection.execute(ENTRIES.insert(), [_row(entry)])
            return entry

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries as they are, all or none."""
        with self._errors(), self._exclusive() as connection:
            connection.execute(ENTRIES.insert(), [_row(entry) for entry in entries])

    @contextmanager
    def _exclusive(self) -> Iterator[sql.Connection]:
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                # Otherwise two writers read the same head, and one of them fails at its commit.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sql.text("LOCK TABLE triptych_ledger IN EXCLUSIVE MODE"))
            yield connection
            connection.commit()

    @staticmethod
    def _entries(connection: sql.Connection, after: int) -> list[Entry]:
        query = sql.select(ENTRIES.c.position, ENTRIES.c.entry).where(ENTRIES.c.position >= after)
        return [_read_row(*row) for row in connection.execute(query.order_by(ENTRIES.c.position))]

    @property
    def _name(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(f"another entry took this one's place in {self._name}") from error
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise LedgerError(f"the ledger {self._name} cannot be used: {reason}; nothing was written") from error


def _read_row(position: int, line: str) -> Entry:
    try:
        return read_entry(line)
    except LedgerError as error:
        raise LedgerError(f"ledger row {position}: {error}") from error


def _row(entry: Entry) -> dict[str, object]:
    return {
        "position": entry.index,
        "ledger": entry.ledger,
        "previous": entry.previous,
        "entry": entry.model_dump_json(),
    }


class HttpStore:
    """Entries behind a governed MLflow server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def entries(self, after: int) -> list[Entry]:
        # Not splitlines: a reason may hold a line separator of Unicode's.
        answer = self.ask("GET", f"/entries?after={after}")
        return [read_entry(line) for line in answer.split("\n") if line]

    def append(self, after: int, make: Maker) -> Entry:
        entry = make(self.entries(after))
        self.ask("POST", "/entries", entry.model_dump_json())
        return entry

    def ask(self, method: str, path: str, content: str | None = None, patience: float = PATIENCE) -> str:
        """The server's answer to a request under `API`.

        Raises:
            ConflictError: another entry came first.
            LedgerError: it refuses, with its reason, or does not answer within ``patience`` seconds.
        """
        import requests
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            answer: requests.Response = http_request(
                get_default_host_creds(self.url),
                API + path,
                method,
                data=content,
                timeout=patience,
                max_retries=2,
                raise_on_status=False,
            )
        except Exception as error:
            raise LedgerError(f"the ledger at {self.url} does not answer: {error}") from error
        if answer.status_code == 409:
            raise ConflictError(message_of(answer.text))
        if answer.status_code != 200:
            raise LedgerError(f"the ledger at {self.url} refused ({answer.status_code}): {message_of(answer.text)}")
        return str(answer.text)


class Ledger:
    """A ledger, read and checked up to its head."""

    def __init__(self, url: str, root: str = "") -> None:
        """Open the ledger at ``url``: ``sqlite:///…``, ``postgresql+psycopg://…``, ``http(s)://…``.

        Args:
            root: the id of the root key that must have opened it; empty: any.

        Raises:
            LedgerError: it is not there, does not hold, or was opened by another root.
        """
        self.url, self.root = url, root
        self.store: Store = HttpStore(url) if url.startswith("http") else SqlStore(url)
        self.all: list[Entry] = []
        self.state = State()
        self.refresh()
        if not self.state.size:
            raise LedgerError(
                f"the ledger {hidden(url)} is empty: it was never opened, or everything was taken out of it"
            )

    @classmethod
    def open(cls, url: str, keys: Mapping[str, Key], root: Signer, seen: bool = False) -> Ledger:
        """The ledger at ``url``, a new one with ``keys`` (role -> public key) if none is there.

        Args:
            seen: somebody saw entries there before, so that none now means that they were taken away.

        Raises:
            LedgerError: it cannot be used, does not hold, or lost its entries.
        """
        store = SqlStore(url)
        store.create()
        if not store.entries(0):
            if seen:
                raise LedgerError(f"the ledger {hidden(url)} is empty, but had entries before: restore it")
            body = Opened(keys={role: key_facts(key) for role, key in keys.items()})

            def first(there: list[Entry]) -> Entry:
                return there[0] if there else _signed(State(ledger=uuid.uuid4().hex), body, root)

            store.append(0, first)
        return cls(url, root.public_key.keyid)

    def refresh(self) -> State:
        """Read and check what is new; gives the state."""
        return self._take(self.store.entries(len(self.all)))

    def append(self, body: Body, signer: Signer) -> Entry:
        """Sign and append an entry; it is checked against the state at the moment it is written.

        Raises:
            LedgerError: the state does not allow it, the key may not say it, or the ledger cannot be written.
        """
        return self._write(lambda state: _signed(state, body, signer))

    def accept(self, entry: Entry) -> None:
        """Append an entry that somebody else signed.

        Raises:
            ConflictError: another entry came first.
            LedgerError: it does not hold.
        """

        def unchanged(state: State) -> Entry:
            if entry.index != state.size or entry.previous != state.head:
                raise ConflictError(f"{entry.name} does not follow the head (entry {state.size - 1}) any more")
            return entry

        self._write(unchanged, patience=0)

    def _write(self, make: Callable[[State], Entry], patience: float = PATIENCE) -> Entry:
        def checked(new: list[Entry]) -> Entry:
            entry = make(self._take(new))
            self._take([entry], ours=True)
            return entry

        until = time.monotonic() + patience
        while True:
            known = len(self.all)
            try:
                return self.store.append(known, checked)
            except BaseException as error:
                # What was taken in may not have been written; what was known before stands.
                self.all, self.state = self.all[:known], replay(self.all[:known])
                if not isinstance(error, ConflictError) or time.monotonic() > until:
                    raise

    def _take(self, new: list[Entry], ours: bool = False) -> State:
        state = self.state
        if any(entry.kind == "key-revoked" for entry in new):
            state = replay([*self.all, *new])
        elif ours:
            state.apply(new[0])  # refused in plain words: it is no entry yet
        else:
            extend(state, new)
        if self.root and new and not self.all and new[0].key != self.root:
            raise LedgerError(f"the ledger {hidden(self.url)} was opened by another root key ({new[0].key[:12]})")
        self.all += new
        self.state = state
        return state


def _signed(state: State, body: Body, signer: Signer) -> Entry:
    entry = Entry(
        ledger=state.ledger,
        index=state.size,
        previous=state.head,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        kind=NAMES[type(body)],
        body=body.model_dump(mode="json"),
        key=signer.public_key.keyid,
    )
    return entry.model_copy(update={"signature": signer.sign(entry.signed_bytes()).signature})


def read_entry(line: str) -> Entry:
    """One entry from its JSON.

    Raises:
        LedgerError: it is not one.
    """
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        raise LedgerError(f"this is not a ledger entry: {line[:80]!r}: {error.errors()[0]['msg']}") from error


def export(entries: Iterable[Entry]) -> str:
    """Entries as JSON lines."""
    return "".join(entry.model_dump_json() + "\n" for entry in entries)


def read_export(path: Path) -> list[Entry]:
    """The entries of an export, not yet checked.

    Raises:
        LedgerError: the file cannot be read, or a line is no entry.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
        lines = lines[:-1] if not lines[-1] else lines
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"the export {path} cannot be read: {error}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(read_entry(line))
        except LedgerError as error:
            raise LedgerError(f"{path}, line {number}: {error}") from error
    return entries


def import_entries(url: str, entries: Sequence[Entry], root: str) -> int:
    """Write checked entries into an empty database; gives how many.

    Raises:
        LedgerError: they do not hold, another root opened them, or the database has a ledger already.
    """
    state = replay(entries)
    if not entries or entries[0].key != root:
        raise LedgerError(f"the export was not opened by root key {root[:12]}")
    store = SqlStore(url)
    store.create()
    if store.entries(0):
        raise LedgerError(f"{hidden(url)} holds a ledger already; import into an empty database")
    store.write(entries)
    return state.size


def hidden(url: str) -> str:
    """A URL without its password."""
    return url if url.startswith("http") else sql.make_url(url).render_as_string(hide_password=True)


def message_of(answer: str) -> str:
    """The message in a server's JSON answer."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return answer[:200]
