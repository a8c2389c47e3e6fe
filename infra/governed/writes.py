"""Uploads that are under way, so that none of them ends after the check of the files that it changes.

An upload into a folder that nobody keeps yet may begin, and end when the folder is a champion's. So each one holds a
lock of the run's folder that it writes into, in all workers of this server, and a move waits for the lock of its
version's run. What begins after the version came into the ledger is refused.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lineage.digests import digest_bytes, hex_of
from lineage.entries import LedgerError
from lineage.files import hold

RUN = re.compile(r"/[0-9a-f]{32}/artifacts(?=/|$)")
"""Ends the place where MLflow keeps the files of a run."""
PATIENCE = 120.0
"""Seconds for which a move waits for uploads."""


class Writes:
    """The locks, in ``folder``, which all workers share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def clear(self) -> None:
        """Forget the runs of before, when no worker is there yet."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    @contextmanager
    def into(self, target: str) -> Iterator[None]:
        """Have moves of versions of the run that a `place` lies in wait for the end of the block."""
        with ExitStack() as held:
            for lock in self._locks(target):
                fcntl.flock(held.enter_context(lock.open("ab")), fcntl.LOCK_SH)
            yield

    def await_end(self, folder: str) -> None:
        """Wait until everything that is being written into the run that the `place` of a version lies in is written.

        Raises:
            LedgerError: it takes too long.
        """
        for lock in self._locks(folder)[-1:]:
            with lock.open("ab") as stream:
                if not hold(stream, PATIENCE):
                    raise LedgerError(f"files are being uploaded into {folder}; ask again later")

    def _locks(self, target: str) -> list[Path]:
        """One for each run that the place lies in: an experiment may keep its files inside another one's run."""
        return [self.folder / hex_of(digest_bytes(target[: run.end()].encode())) for run in RUN.finditer(target)]
