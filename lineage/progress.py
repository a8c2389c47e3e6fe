"""Progress of long work as plain lines, the same in a log, a pod and a pipe.

A line reads ``[progress] sampling candidate 120/400, 1:10 left``; whoever watches a terminal (the command line)
redraws it in place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

MARK = "[progress] "

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int, every: float = 2.0, weight: int = 1) -> Iterator[Item]:
    """Yield ``items`` and say how far they are at most once in ``every`` seconds.

    Args:
        total: units of work in all.
        weight: units of work in one item.
    """
    started = spoke = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - spoke >= every or done * weight >= total:
            spoke = now
            report(what, min(done * weight, total), total, now - started)


def report(what: str, done: int, total: int, elapsed: float, detail: str = "") -> None:
    """Print one progress line; ``elapsed`` in seconds."""
    left = elapsed / max(done, 1) * (total - done)
    note = f", {detail}" if detail else ""
    print(f"{MARK}{what} {done}/{total}{note}, {int(left) // 60}:{int(left) % 60:02d} left", flush=True)
