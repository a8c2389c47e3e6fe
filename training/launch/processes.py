"""A child process and everything it starts, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

PATIENCE = 5.0
"""Seconds between asking processes to end and ending them."""


@contextlib.contextmanager
def child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run ``command`` in a session of its own; when the block ends, by whatever, nothing of it is left.

    Its standard input is a pipe that closes when this process dies, its standard output and error come as one
    stream of lines.
    """
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipe |= {"text": True, "errors": "replace", "bufsize": 1}
    with subprocess.Popen(command, env=dict(environment), start_new_session=True, **pipe) as process:
        try:
            yield process
        finally:
            end_tree(process.pid)


def end_tree(pid: int) -> None:
    """End the process ``pid`` and all its descendants: SIGTERM, and SIGKILL after `PATIENCE`."""
    family = _family(pid)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        family = [*alive, *(p for member in alive for p in _family(member.pid))]


def _family(pid: int) -> list[psutil.Process]:
    """The process ``pid`` and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


@contextlib.contextmanager
def termination_as_exit(ask: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit, so that clean-up runs as it does for Ctrl-C.

    With ``ask`` the first SIGTERM calls that instead, and the block goes on; the second raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asks = [ask] if ask else []

    def leave(number: int, frame: FrameType | None) -> None:
        if asks:
            asks.pop()()
        else:
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def python_environment(threads: int) -> dict[str, str]:
    """The environment of a training process: its threads, and an import path on which this checkout is found."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Keep freed memory: glibc otherwise returns each step's buffers and faults them in again in the next.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
    }
