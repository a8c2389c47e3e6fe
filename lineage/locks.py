"""Locks between processes of one machine, in files."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lineage.digests import LineageError

LONGEST = 15.0
"""Seconds that anybody holds one."""


@contextmanager
def exclusive(path: Path, patience: float = LONGEST) -> Iterator[None]:
    """Hold the lock file at ``path``, made where missing, that nobody but its owner may read.

    Raises:
        LineageError: it is no file of its own, or somebody else holds it for longer than ``patience`` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LineageError(f"the lock {path} cannot be used: {error}") from error
    with os.fdopen(descriptor, "rb+", buffering=0):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LineageError(f"the lock {path} is no file: remove it")
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise LineageError(
                        f"somebody holds the lock {path} for {patience:.0f} s: find and end it"
                    ) from None
                time.sleep(0.02)
        yield
