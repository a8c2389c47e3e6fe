"""Counts who uses something, so that it can be ended when nobody does."""

from __future__ import annotations

import asyncio


class Users:
    """``with users:`` around each use, on the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self.count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._none.set()

    async def gone(self) -> None:
        """Wait until nobody uses it."""
        await self._none.wait()
