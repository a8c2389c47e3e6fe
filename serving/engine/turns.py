"""Who is in work, who waits, and whose turn is next. Knows nothing of models; the worker's thread alone uses it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

MOST_GROUPS = 4
"""Groups in work at once. A group waits for one step of each other one between two of its own."""
HELD = 4
"""A group holds so many batches of pictures, so that a short one need not wait until a long one is done."""
MOST_PASSED = 8
"""Within a group those with the fewest steps left are stepped first; who was passed over so often goes before them."""
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

    @property
    def left(self) -> int:
        """Steps that it still needs."""

    overtaken: int
    passed: int


T = TypeVar("T", bound=Item)


class Turns(Generic[T]):
    """Items wait in line and are admitted to the group of their key; groups take turns, and so do items within one.

    Args:
        limit: the most rows of a batch that an item may be part of. An item with more is a batch by itself.
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
        return sum(other.rows for other in group) + item.rows <= HELD * self._limit(item)

    def next(self) -> list[T]:
        """A batch of the group whose turn it is, which goes to the end of the line; empty where nobody is in work."""
        if not self.groups:
            return []
        key = next(iter(self.groups))
        self.groups.move_to_end(key)
        chosen: list[T] = []
        room = self._limit(self.groups[key][0])
        for item in sorted(self.groups[key], key=_rank):
            fits = item.rows <= room or not chosen
            item.passed = 0 if fits else item.passed + 1
            if fits:
                chosen.append(item)
                room -= item.rows
        return chosen

    def remove(self, item: T) -> None:
        """Free the place of an item, in work or waiting."""
        group = self.groups.get(item.key, [])
        if item in group:
            group.remove(item)
            if not group:
                del self.groups[item.key]
        elif item in self.waiting:
            self.waiting.remove(item)


def _rank(item: Item) -> tuple[int, int]:
    return -item.passed if item.passed >= MOST_PASSED else 0, item.left
