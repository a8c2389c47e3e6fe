"""What a person sees of a run: one line a step, a bar with the time left, and everything in a log file.

On a terminal, progress is one bar that is redrawn in place; elsewhere it is plain lines, at most one in ten seconds.
"""

from __future__ import annotations

import io
import re
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lineage.progress import MARK

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"Executing task '?([a-z0-9-]+)'?")
_ENDS = re.compile(r"Task '?([a-z0-9-]+)'? finished with status (\w+)")
_PROGRESS = re.compile(r"(?P<what>.*?) (?P<done>\d+)/(?P<total>\d+)(?:, .*)?, (?P<left>\d+:\d\d) left")
EVERY = 10
"""Seconds between two lines of progress where there is no terminal."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, brackets and numbers included, in one colour."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Narration(io.TextIOBase):
    """Takes what is printed inside its block: everything goes to ``log``, the gist to ``console``."""

    def __init__(self, console: Console, log: Path) -> None:
        self._console = console
        self._log, self._blocks = log.open("a", encoding="utf-8"), ExitStack()
        columns = (TextColumn("  {task.description}", markup=False), BarColumn(24), TextColumn("{task.fields[note]}"))
        terminal = console.is_terminal
        self._bar = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("starting", total=None, note="")
        self._line = self._step = ""
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        for block in (self._bar, redirect_stdout(self), redirect_stderr(self)):
            self._blocks.enter_context(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.close()
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
            self._bar.reset(self._task, total=None, description=self._step, note="")
        elif (ends := _ENDS.search(line)) and ends[1] == self._step:
            note, style = ("", "") if ends[2] == "SUCCESS" else (f"  {ends[2].lower()}", "red")
            say(self._console, f"  {self._step:<18} {time.monotonic() - self._began:6.1f} s{note}", style)
        elif MARK in line:
            self._progress(line.split(MARK, 1)[1])

    def _progress(self, text: str) -> None:
        if self._console.is_terminal and (found := _PROGRESS.match(text)):
            done, total, note = int(found["done"]), int(found["total"]), f"{found['done']}/{found['total']}, "
            self._bar.update(
                self._task, description=found["what"], completed=done, total=total, note=f"{note}{found['left']} left"
            )
        elif self._console.is_terminal:
            self._bar.reset(self._task, total=None, description=text, note="")
        elif (now := time.monotonic()) - self._spoke >= EVERY:
            self._spoke = now
            say(self._console, f"    {text}")
