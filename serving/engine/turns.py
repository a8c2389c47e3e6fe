"""Which pictures are in work, which wait, and whose turn is next. The worker's thread alone uses it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator

from serving.engine.picture import Picture

MOST_GROUPS = 4
"""Groups in work at once. A group waits for one step of each other one between two of its own."""
HELD = 4
"""A group holds so many batches of pictures, so that a short one need not wait until a long one is done."""
MOST_PASSED = 8
"""Within a group those with the fewest steps left are stepped first; who was passed over so often goes before them."""
MOST_OVERTAKEN = 32
"""A picture is overtaken by at most so many later ones for which there was a place; then nobody passes it."""


class Turns:
    """Pictures wait in line and join the group of their key; groups take turns, and so do pictures within one.

    Args:
        limit: the most rows of a batch that a picture may be part of. One with more is a batch by itself.
    """

    def __init__(self, limit: Callable[[Picture], int]) -> None:
        self.waiting: deque[Picture] = deque()
        self.groups: OrderedDict[Hashable, list[Picture]] = OrderedDict()
        self._limit = limit

    def __iter__(self) -> Iterator[Picture]:
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

    def admit(self) -> Picture | None:
        """Bring the first that has a place into its group; None where nobody has."""
        for position, one in enumerate(self.waiting):
            if self._has_place(one):
                for passed in list(self.waiting)[:position]:
                    passed.overtaken += 1
                del self.waiting[position]
                self.groups.setdefault(one.key, []).append(one)
                return one
            if one.overtaken >= MOST_OVERTAKEN:
                return None
        return None

    def _has_place(self, one: Picture) -> bool:
        group = self.groups.get(one.key)
        if group is None:
            return len(self.groups) < MOST_GROUPS
        return sum(other.rows for other in group) + one.rows <= HELD * self._limit(one)

    def next(self) -> list[Picture]:
        """A batch of the group whose turn it is, which goes to the end of the line; empty where nobody is in work."""
        if not self.groups:
            return []
        key = next(iter(self.groups))
        self.groups.move_to_end(key)
        chosen: list[Picture] = []
        room = self._limit(self.groups[key][0])
        for one in sorted(self.groups[key], key=_rank):
            fits = one.rows <= room or not chosen
            one.passed = 0 if fits else one.passed + 1
            if fits:
                chosen.append(one)
                room -= one.rows
        return chosen

    def remove(self, one: Picture) -> None:
        """Free the place of a picture, in work or waiting."""
        group = self.groups.get(one.key, [])
        if one in group:
            group.remove(one)
            if not group:
                del self.groups[one.key]
        elif one in self.waiting:
            self.waiting.remove(one)


def _rank(one: Picture) -> tuple[int, int]:
    return -one.passed if one.passed >= MOST_PASSED else 0, one.left
