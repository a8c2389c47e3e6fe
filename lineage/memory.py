"""What one reader remembers of a ledger: how long it was, and what it added up to.

The high-water mark refuses a ledger that is shorter than it was, or another one. The remembered state spares reading
and checking a long ledger anew in every process of a run. It counts with the signature of the run key that the root
named when it opened the ledger, so that whoever may write files here cannot have the reader believe anything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.signer import Key, Signer

from lineage.artifacts import read_file
from lineage.digests import LineageError, code_digest
from lineage.entries import LedgerError
from lineage.files import exclusive, write_whole
from lineage.signing import open_envelope, sign
from lineage.state import State
from lineage.witness import Checkpoint, check_against

STATE_TYPE = "application/vnd.triptych.ledger-state+json"
MOST_MARK, MOST_STATE = 64 * 1024, 1024 * 1024 * 1024
"""Bytes of a mark and of a remembered state that are read."""
WORTH = 200
"""Entries that a reader has to check anew before the state is remembered again."""


class Remembered(BaseModel):
    """A state, and the code whose rules made it."""

    model_config = ConfigDict(extra="forbid")

    code: str
    state: State


@dataclass(frozen=True)
class Memory:
    """The memory of ``reader`` in ``folder``; with ``signer`` it remembers states too."""

    folder: Path
    reader: str
    signer: Signer | None = None

    def locked(self) -> AbstractContextManager[None]:
        """Hold it, against other processes of the same reader; raises `LineageError` where it cannot be had."""
        return exclusive(self.folder / f"{self.reader}.lock")

    def check(self, state: State, digest_at: Callable[[int], str]) -> None:
        """Refuse a ledger that is older than, or not the one, seen before; then remember this one.

        Raises:
            LedgerError: it is; or the mark cannot be read or written.
        """
        mark = self.folder / f"{self.reader}.json"
        try:
            if mark.exists() or mark.is_symlink():
                seen = Checkpoint.model_validate_json(read_file(mark, MOST_MARK))
                check_against(state, digest_at, seen, f"the mark {mark}")
                if seen.size == state.size:
                    return
            write_whole(mark, Checkpoint.of(state).model_dump_json().encode() + b"\n")
        except (OSError, ValidationError) as error:
            raise LedgerError(f"the high-water mark {mark} cannot be used: {error}") from error

    def recall(self, key: Key, digest_at: Callable[[int], str]) -> State | None:
        """The remembered state, where ``key`` signed it, it is of these rules, and the ledger goes on from it.

        Once the run key was rotated nothing is remembered any more: a key that lies here proves nothing by itself.
        """
        try:
            payload, _ = open_envelope(read_file(self._state_file, MOST_STATE), STATE_TYPE, [key])
            found = Remembered.model_validate_json(payload)
        except (LineageError, ValidationError):
            return None  # then the whole ledger is read and checked
        same = found.code == code_digest("lineage") and digest_at(found.state.size - 1) == found.state.head
        return found.state if same else None

    def keep(self, state: State) -> None:
        """Remember a state whose entries were all checked."""
        if self.signer is None:
            return
        content = Remembered.model_construct(code=code_digest("lineage"), state=state).model_dump_json().encode()
        write_whole(self._state_file, sign(content, STATE_TYPE, self.signer))

    @property
    def _state_file(self) -> Path:
        return self.folder / f"{self.reader}.state"
