"""Uploads that are under way, so that none of them ends after the check of the files that it changes.

An upload into a folder that nobody keeps yet may begin, and end when the folder is a champion's. So each one holds a
lock of its run, in all workers of this server, and a move waits for the locks of its version's run. What begins after
the version came into the ledger is refused.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lineage.entries import LedgerError

PATIENCE = 120.0
"""Seconds for which a move waits for uploads."""


class Writes:
    """The locks, in ``folder``, which all workers share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    @contextmanager
    def into(self, runs: Iterable[str]) -> Iterator[None]:
        """Have moves of versions that these MLflow runs made wait for the end of the block."""
        with ExitStack() as held:
            for name in {run[:2] for run in runs}:  # a few runs share one: there would be too many files
                fcntl.flock(held.enter_context((self.folder / name).open("ab")), fcntl.LOCK_SH)
            yield

    def await_end(self, run: str) -> None:
        """Wait until everything that is being written into a run is written.

        Raises:
            LedgerError: it takes too long.
        """
        until = time.monotonic() + PATIENCE
        with (self.folder / run[:2]).open("ab") as lock:
            while True:
                try:
                    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise LedgerError(f"files are being uploaded into run {run}; ask again later") from None
                time.sleep(0.1)
