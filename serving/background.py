"""Work beside drawing, such as reading and hashing weights: its threads take a core where no picture needs it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

NICENESS = 10


def _stand_back() -> None:
    if sys.platform == "linux":  # where it counts for this thread and those that it starts; elsewhere, for the process
        os.nice(NICENESS)


_THREADS = ThreadPoolExecutor(4, "background", initializer=_stand_back)


async def in_background(work: Callable[..., T], *arguments: Any) -> T:
    """What ``work`` gives, done in a thread of low priority."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work, *arguments)
