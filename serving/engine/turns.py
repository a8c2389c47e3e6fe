"""Who is in work, who waits, and whose turn is next. Knows nothing of models; the worker's thread alone uses it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

MOST_GROUPS = 4
"""Groups in work at once. A group waits for one step of each other one between two of its own."""
MOST_OVERTAKEN = 32
"""A picture is overtaken by at most so many later ones for which there was a place; then nobody passes it."""


class Item(Protocol):
    """What takes turns."""

    @property
    def key(self) -> Hashable:
        """Items of one key share a batch."""

    @property
    def rows(self) -> int:
        """Rows of a batch that it fills."""

    overtaken: int


T = TypeVar("T", bound=Item)


class Turns(Generic[T]):
    """Items wait in line, are admitted to the group of their key while that has rows left, and groups take turns.

    Args:
        limit: the most rows of a batch that an item may be part of.
    """

    def __init__(self, limit: Callable[[T], int]) -> None:
        self.waiting: deque[T] = deque()
        self.groups: OrderedDict[Hashable, list[T]] = OrderedDict()
        self._limit = limit

    def __iter__(self) -> Iterator[T]:
        """All in work, then all that wait."""
        for group in list(self.groups.values()):
            yield from list(group)
        yield from list(self.waiting)

    def __bool__(self) -> bool:
        """Whether anybody is in work or waits."""
        return bool(self.groups or self.waiting)

    @property
    def active(self) -> int:
        """How many are in work."""
        return sum(len(group) for group in list(self.groups.values()))

    def admit(self) -> T | None:
        """Bring the first that has a place into its group; None where nobody has."""
        for position, item in enumerate(self.waiting):
            if self._has_place(item):
                for passed in list(self.waiting)[:position]:
                    passed.overtaken += 1
                del self.waiting[position]
                self.groups.setdefault(item.key, []).append(item)
                return item
            if item.overtaken >= MOST_OVERTAKEN:
                return None
        return None

    def _has_place(self, item: T) -> bool:
        group = self.groups.get(item.key)
        if group is None:
            return len(self.groups) < MOST_GROUPS
        return sum(other.rows for other in group) + item.rows <= self._limit(item)

    def next(self) -> list[T]:
        """The group whose turn it is; it goes to the end of the line. Empty where nobody is in work."""
        if not self.groups:
            return []
        key = next(iter(self.groups))
        self.groups.move_to_end(key)
        return self.groups[key]

    def remove(self, item: T) -> None:
        """Free the place of an item, in work or waiting."""
        group = self.groups.get(item.key, [])
        if item in group:
            group.remove(item)
            if not group:
                del self.groups[item.key]
        elif item in self.waiting:
            self.waiting.remove(item)
