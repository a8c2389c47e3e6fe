"""Who waits, who is in work, whose turn is next: for any order of arrivals and departures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.engine.turns import HELD, MOST_GROUPS, MOST_OVERTAKEN, MOST_PASSED, Turns

LIMIT = 4


@dataclass(eq=False)
class Item:
    """Stands for a picture."""

    key: str
    rows: int
    left: int
    overtaken: int = 0
    passed: int = 0


class Crowd(RuleBasedStateMachine):
    """Items come, are admitted, take turns and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(lambda item: LIMIT)
        self.alive: list[Item] = []
        self.admitted: list[Item] = []
        self.since: dict[str, Counter[str]] = {}
        """By group: the turns of others since its own."""

    @rule(key=st.sampled_from("abcdefg"), rows=st.integers(1, 6), left=st.integers(1, 50))
    def come(self, key: str, rows: int, left: int) -> None:
        item = Item(key, rows, left)
        self.alive.append(item)
        self.turns.waiting.append(item)

    @rule()
    def admit(self) -> None:
        ahead = list(self.turns.waiting)
        item = self.turns.admit()
        if item:
            self.admitted.append(item)
            same = [other for other in ahead[: ahead.index(item)] if other.key == item.key]
            assert all(other.rows > item.rows for other in same), "passed an equal one of its own group"

    @rule()
    def turn(self) -> None:
        group = self.turns.next()
        if not group:
            assert not self.turns.active
            return
        key = group[0].key
        assert len(group) == 1 or sum(item.rows for item in group) <= LIMIT
        assert all(item.key == key for item in group)
        assert all(count <= 1 for count in self.since.get(key, Counter()).values()), "another group had two turns"
        self.since[key] = Counter()
        for other in self.since:
            if other != key:
                self.since[other][key] += 1

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.alive))
        self.turns.remove(item)
        self.turns.remove(item)
        self.alive.remove(item)
        if item.key not in self.turns.groups:
            self.since.pop(item.key, None)

    @invariant()
    def nobody_is_lost(self) -> None:
        assert sorted(map(id, self.turns)) == sorted(map(id, self.alive))

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.turns.groups) <= MOST_GROUPS
        for key, group in self.turns.groups.items():
            assert group and all(item.key == key for item in group)
            assert len(group) == 1 or sum(item.rows for item in group) <= HELD * LIMIT
        assert all(item.overtaken <= MOST_OVERTAKEN for item in self.turns)
        assert all(item.passed <= MOST_PASSED + HELD * LIMIT for item in self.turns)


Crowd.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestCrowd = Crowd.TestCase


def test_the_shortest_go_first_and_nobody_is_passed_over_for_ever() -> None:
    turns = Turns(lambda item: LIMIT)
    long = [Item("a", 2, 50) for _ in range(3)]
    turns.waiting.extend(long)
    while turns.admit():
        pass
    steps = {id(item): 0 for item in long}
    for _ in range(40):
        turns.waiting.append(Item("a", 2, 1))
        turns.admit()
        batch = turns.next()
        assert len(batch) == 2
        for item in batch:
            if item.left == 1:
                turns.remove(item)
            else:
                steps[id(item)] += 1
    assert sum(steps.values()) == 40 and min(steps.values()) >= 3


def test_a_picture_is_not_overtaken_for_ever() -> None:
    """Four groups are kept busy by ever new small ones; the fifth's picture is admitted all the same."""
    turns = Turns(lambda item: LIMIT)
    for number, key in enumerate("abcd"):
        turns.waiting.append(Item(key, 1, number))
        assert turns.admit()
    patient = Item("e", 1, 4)
    turns.waiting.append(patient)
    for number in range(5, 5 + 16 * MOST_OVERTAKEN):
        turns.waiting.append(Item("abcd"[number % 4], 1, number))
        while turns.admit():
            pass
        if patient in turns.groups.get("e", []):
            return
        for group in list(turns.groups.values()):
            if sum(item.rows for item in group) == HELD * LIMIT or patient.overtaken >= MOST_OVERTAKEN:
                turns.remove(group[0])
    raise AssertionError("never admitted")
