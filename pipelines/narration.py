"""What a person sees of a run: one line a step, progress with time left, and everything in a log file.

On a terminal, progress is redrawn in place; elsewhere it is plain lines, at most one in ten seconds.
"""

from __future__ import annotations

import io
import re
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from lineage.progress import MARK

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"Executing task '?([a-z0-9-]+)'?")
_ENDS = re.compile(r"Task '?([a-z0-9-]+)'? finished with status (\w+)")


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, brackets and numbers included, in one colour."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Narration(io.TextIOBase):
    """Takes what is printed inside its block: everything goes to ``log``, the gist to ``console``."""

    def __init__(self, console: Console, log: Path) -> None:
        self._console = console
        self._log, self._redirected = log.open("a", encoding="utf-8"), ExitStack()
        self._status: Status | None = console.status("starting") if console.is_terminal else None
        self._line = ""
        self._step = ""
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        self._redirected.enter_context(redirect_stdout(self))
        self._redirected.enter_context(redirect_stderr(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redirected.close()
        if self._status:
            self._status.stop()
        self._log.close()

    def writable(self) -> bool:
        """It is a stream to write to."""
        return True

    def write(self, text: str) -> int:
        """Take a piece of output; whole lines are looked at, all of it is logged, without colours."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            plain = _ESCAPES.sub("", line)
            self._log.write(f"{plain}\n")
            self._log.flush()
            self._hear(plain)
        return len(text)

    def _hear(self, line: str) -> None:
        if begins := _BEGINS.search(line):
            self._step, self._began = begins[1], time.monotonic()
            self._show(self._step)
        elif ends := _ENDS.search(line):
            self._end(ends[1], ends[2])
        elif MARK in line:
            self._progress(line.split(MARK, 1)[1])

    def _end(self, step: str, status: str) -> None:
        if step != self._step:
            return
        note, style = ("", "") if status == "SUCCESS" else (f"  {status.lower()}", "red")
        say(self._console, f"  {step:<18} {time.monotonic() - self._began:6.1f} s{note}", style)
        self._show("…")

    def _progress(self, text: str) -> None:
        if self._status:
            self._show(f"{self._step}: {text}" if self._step else text)
        elif (now := time.monotonic()) - self._spoke >= 10:
            self._spoke = now
            say(self._console, f"    {text}")

    def _show(self, text: str) -> None:
        if self._status:
            self._status.update(text)
