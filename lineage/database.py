"""Ledger entries in a database: SQLite by default, PostgreSQL in a cluster.

No other database: it must tell ``champion`` from ``chámpion``, which MySQL's collations do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from lineage.entries import Entry, LedgerError, read_entry
from lineage.places import without_credentials
from lineage.stores import PATIENCE, ConflictError, Maker

DIALECTS = ("sqlite", "postgresql")
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


class DatabaseStore:
    """Entries in a database."""

    def __init__(self, url: str) -> None:
        """Connect when something is asked.

        Raises:
            LedgerError: ``url`` names no database, or neither SQLite nor PostgreSQL.
        """
        try:
            made = sql.make_url(url)
            self.name = without_credentials(made.set(username=None, password=None).render_as_string())
            dialect = made.get_backend_name()
            if dialect not in DIALECTS:
                raise LedgerError(f"the ledger {self.name} is in {dialect}; use SQLite or PostgreSQL")
            self.engine = sql.create_engine(url, connect_args={"timeout": PATIENCE} if dialect == "sqlite" else {})
        except (ArgumentError, NoSuchModuleError, ValueError) as error:  # the last one of a port
            raise LedgerError(without_credentials(f"{url} is no database: {error}")) from error

    def create(self) -> None:
        """Make the table if it is not there."""
        with self._errors():
            TABLES.create_all(self.engine)

    @cached_property
    def _is_view(self) -> bool:
        """Whether somebody exchanged the table for a view, which can go on without an end."""
        return ENTRIES.name in sql.inspect(self.engine).get_view_names()

    def entries(self, after: int, before: int | None = None) -> list[Entry]:
        """Those from index ``after`` on, up to ``before``."""
        with self._errors(), self.engine.connect() as connection:
            if self._is_view:
                raise LedgerError(f"the ledger {self.name} is a view, and no table of its own: restore it")
            return self._entries(connection, after, before)

    def append(self, after: int, make: Maker) -> Entry:
        """As a server's, see `lineage.stores.ServerStore.append`."""
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
    def _entries(connection: sql.Connection, after: int, before: int | None = None) -> list[Entry]:
        query = sql.select(ENTRIES.c.position, ENTRIES.c.entry).where(ENTRIES.c.position >= after)
        if before is not None:
            query = query.where(ENTRIES.c.position < before)
        found: list[Entry] = []
        for row in connection.execute(query.order_by(ENTRIES.c.position)):
            found.append(_read_row(*row))
            if found[-1].index != after + len(found) - 1:
                break  # the chain ends here, however much a table that somebody exchanged goes on
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        name = self.name
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(f"another entry took this one's place in {name}") from error
        except SQLAlchemyError as error:
            reason = without_credentials(str(getattr(error, "orig", error)).splitlines()[0])
            raise LedgerError(f"the ledger {name} cannot be used: {reason}; nothing was written") from error


def _read_row(position: int, line: str) -> Entry:
    try:
        return read_entry(str(line))
    except LedgerError as error:
        raise LedgerError(f"ledger row {position}: {error}") from error


def _row(entry: Entry) -> dict[str, object]:
    return {
        "position": entry.index,
        "ledger": entry.ledger,
        "previous": entry.previous,
        "entry": entry.model_dump_json(),
    }
