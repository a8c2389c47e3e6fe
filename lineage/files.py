"""Files that several processes of one machine use: locks, and files and folders made whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lineage.digests import LineageError

PATIENCE = 15.0
"""Seconds to wait for a lock, whose holder may be reading a long ledger or fetching over a network."""


class LockError(LineageError, OSError):
    """A lock cannot be had."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``, made where missing, that nobody but its owner may read.

    Raises:
        LockError: it is no file of its own, or somebody else holds it for longer than `PATIENCE`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockError(f"the lock {path} cannot be used: {error}") from error
    with os.fdopen(descriptor, "rb+", buffering=0):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LockError(f"the lock {path} is no file: remove it")
        if not hold(descriptor, PATIENCE):
            raise LockError(f"somebody holds the lock {path} for {PATIENCE:.0f} s: end it")
        yield


def hold(file: int | IO[Any], patience: float) -> bool:
    """Take the lock of an open file, until it is closed; whether it could be had within ``patience`` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file, whole or not at all, also where the machine stops meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody knows beforehand, or a link or a pipe could wait there.
    descriptor, partial = tempfile.mkstemp(prefix=".", dir=path.parent)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    Path(partial).replace(path)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, beside ``target``, whose place it takes once the block has ended well."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
