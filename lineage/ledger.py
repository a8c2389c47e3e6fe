"""The ledger: the append-only, hash-chained, signed list that says what was done and who is champion.

    ledger = Ledger.open("sqlite:////work/ledger.db", root, memory=Memory(Path("marks"), "pipeline"))
    ledger.state.champion("portraits")
    ledger.append(Closed(run="r1", outcome="judged"), signer)

Whoever reads it checks every entry; whoever writes holds the key of a role that may say so.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from securesystemslib.signer import Key, Signer

from lineage.clock import now
from lineage.entries import Body, Entry, KeyRevoked, LedgerError, Opened, entry_digest
from lineage.memory import WORTH, Memory
from lineage.rules import extend, replay
from lineage.signing import key_facts, open_signer, sign_bytes
from lineage.state import State
from lineage.stores import PATIENCE, ConflictError, ServerStore

if TYPE_CHECKING:
    from lineage.database import DatabaseStore

CLOCKS_APART = timedelta(minutes=5)
"""By how much the clock of whoever signs an entry may be ahead of that of whoever takes it in."""


class Ledger:
    """A ledger, read and checked up to its head when its `state` is first asked for."""

    def __init__(self, store: ServerStore | DatabaseStore, root: str, memory: Memory | None) -> None:
        self.store, self.root, self.memory, self.name = store, root, memory, store.name
        self._state: State | None = None

    @classmethod
    def open(cls, url: str, root: str = "", memory: Memory | None = None) -> Ledger:
        """The ledger at ``url``: ``sqlite:///…``, ``postgresql+psycopg://…``, ``http(s)://…``.

        Args:
            root: the id of the root key that must have opened it; empty: any.
            memory: what this reader saw of it before.

        Raises:
            LedgerError: the URL names no such place.
        """
        if url.startswith(("http://", "https://")):
            return cls(ServerStore(url), root, memory)
        from lineage.database import DatabaseStore

        return cls(DatabaseStore(url), root, memory)

    @property
    def state(self) -> State:
        """What its entries add up to; read once, then kept up by `refresh` and `append`.

        Raises:
            LedgerError: it is not there, does not hold, was opened by another root, or is shorter than it was.
        """
        return self._state or self.refresh()

    def entries(self, after: int = 0) -> list[Entry]:
        """The entries from index ``after`` on, as they lie there."""
        return self.store.entries(after)

    def refresh(self) -> State:
        """Read and check what is new; gives the state."""
        # Read within the lock: a reader that is a moment behind another one would take the ledger for a shorter one.
        with self.memory.locked() if self.memory else nullcontext():
            if self._state is None:
                self._state = self._read()
            else:
                self._state = self._take(self._state, self.store.entries(self._state.size))
            if self.memory:
                self.memory.check(self._state, self.digest_at)
        return self._state

    def digest_at(self, index: int) -> str:
        """The digest of one entry; empty where there is none."""
        found = self.store.entries(index, index + 1)
        return entry_digest(found[0]) if found else ""

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
            if entry.time > (soon := now(CLOCKS_APART)):
                raise LedgerError(f"{entry.name} is dated {entry.time}, and here it is not even {soon}: set the clocks")
            return entry

        self._write(unchanged, patience=0)

    def signer(self, role: str, uri: str) -> Signer:
        """The private key of a role at ``uri``: in a file, or in a key service by its own scheme.

        Raises:
            LineageError: there is none, or the ledger names another key for the role.
        """
        return open_signer(uri, self.state.key_of(role))  # type: ignore[arg-type]

    def _read(self) -> State:
        state = self._recall() or State()
        remembered = state.size
        state = self._take(state, self.store.entries(state.size))
        if not state.size:
            raise LedgerError(f"{self.name} is empty: it was never opened, or everything was taken out of it")
        opener = next(iter(key for key, known in state.keys.items() if known.role == "root"))
        if self.root and opener != self.root:
            raise LedgerError(f"the ledger {self.name} was opened by another root key ({opener[:12]})")
        if self.memory and state.size - remembered >= WORTH:
            self.memory.keep(state)
        return state

    def _recall(self) -> State | None:
        """What this reader remembers, signed by the run key that the root named when it opened the ledger."""
        first = self.store.entries(0, 1)
        if not self.memory or not first or first[0].key != self.root:
            return None
        extend(opened := State(), first)
        return self.memory.recall(opened.key_of("run"), self.digest_at)

    def _take(self, state: State, new: Sequence[Entry]) -> State:
        if any(isinstance(entry.body, KeyRevoked) for entry in new):
            return replay([*self.store.entries(0, state.size), *new])
        extend(state, new)
        return state

    def _write(self, make: Callable[[State], Entry], patience: float = PATIENCE) -> Entry:
        until = time.monotonic() + patience
        while True:
            known = self.state.size
            try:
                return self.store.append(known, lambda new: self._next(new, make))
            except BaseException as error:
                if self._state and self._state.size > known:
                    self._state = None  # the entry was applied, and may not have been written
                if not isinstance(error, ConflictError) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _next(self, new: Sequence[Entry], make: Callable[[State], Entry]) -> Entry:
        """The next entry, after ``new``, which somebody else wrote meanwhile; it keeps the rules."""
        self._state = self._take(self.state, new)
        entry = make(self._state)
        self._state = self._take(self._state, [entry])
        return entry


def open_database(url: str, keys: Mapping[str, Key], root: Callable[[], Signer]) -> None:
    """Make the ledger at ``url``, with ``keys`` (role -> public key), if none is there.

    Args:
        root: opens the root's private key, which is needed for a new ledger only.

    Raises:
        LedgerError: it cannot be used.
    """
    from lineage.database import DatabaseStore

    store = DatabaseStore(url)
    store.create()
    if store.entries(0, 1):
        return
    body, signer = Opened(keys={role: key_facts(key) for role, key in keys.items()}), root()

    def first(there: list[Entry]) -> Entry:
        if there:
            raise ConflictError("another process opened the ledger first")
        return _signed(State(ledger=uuid.uuid4().hex), body, signer)

    with suppress(ConflictError):
        store.append(0, first)


def _signed(state: State, body: Body, signer: Signer) -> Entry:
    place = {"ledger": state.ledger, "index": state.size, "previous": state.head}
    entry = Entry.model_validate({**place, "time": now(), "body": body, "key": signer.public_key.keyid})
    return entry.model_copy(update={"signature": sign_bytes(entry.signed_bytes(), signer)})
