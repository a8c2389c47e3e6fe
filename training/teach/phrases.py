"""Captions split into phrases and clauses: the granularity of the supervision.

The rule is plain and the same for every caption: cut at sentence ends, commas, semicolons and colons, and before
the words that open a clause in a description of a portrait ("with", "wearing", "in front of", "and" ...). The
opening word stays with its phrase ("with glasses", "without a beard": the difference matters), except "and".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.settings import Granularity

NULL_PHRASE = ""
"""Nothing that was said: where a patch shows what its caption does not mention."""

_PUNCTUATION = re.compile(r"\s*[,;:.!?()\n]+\s*")
_OPENERS = (
    "in front of", "on top of", "without", "wearing", "holding", "having", "against", "behind", "beside",
    "under", "with", "while", "and", "who", "that", "which", "no",
)  # fmt: skip
_CLAUSE = re.compile(r"\s+(?=(?:" + "|".join(_OPENERS) + r")\b)", re.IGNORECASE)
_LEADING_AND = re.compile(r"^and\s+", re.IGNORECASE)
_OPENERS_ALONE = frozenset(_OPENERS)


def split_phrases(caption: str) -> list[str]:
    """The phrases of ``caption``, in order, without repeats; empty for an empty caption.

    >>> split_phrases("a portrait of a woman with red hair and glasses, wearing a blue shirt")
    ['a portrait of a woman', 'with red hair', 'glasses', 'wearing a blue shirt']
    """
    phrases: dict[str, None] = {}
    for part in _PUNCTUATION.split(caption):
        opened = ""
        for piece in _CLAUSE.split(part):
            phrase = _LEADING_AND.sub("", f"{opened} {piece}".strip()) if opened else piece.strip()
            if phrase.lower() in _OPENERS_ALONE:
                # "with" directly before another opening word: keep them together.
                opened = phrase
                continue
            opened = ""
            phrase = _LEADING_AND.sub("", phrase)
            if phrase:
                phrases[phrase] = None
    return list(phrases)


def split_clauses(caption: str) -> list[str]:
    """The clauses of ``caption``, cut at punctuation only, in order, without repeats.

    >>> split_clauses("a portrait of a woman with red hair and glasses, wearing a blue shirt")
    ['a portrait of a woman with red hair and glasses', 'wearing a blue shirt']
    """
    return list(dict.fromkeys(part for part in _PUNCTUATION.split(caption) if part))


_SPLIT: dict[Granularity, Callable[[str], list[str]]] = {"phrase": split_phrases, "clause": split_clauses}
_SPLIT["caption"] = lambda caption: [caption]


@dataclass(frozen=True)
class Phrasebook:
    """Every string of the corpus that a teacher reads, once: each caption, its clauses and its phrases."""

    strings: list[str]
    """Row i of the embeddings is of string i; row 0 is the null phrase."""
    parts: dict[Granularity, list[list[int]]]
    """At each granularity, for each caption, the rows of its parts."""

    @classmethod
    def of(cls, captions: Sequence[str]) -> Phrasebook:
        """The strings of ``captions`` at every granularity, in order of appearance."""
        numbers = {NULL_PHRASE: 0}
        parts: dict[Granularity, list[list[int]]] = {kind: [] for kind in _SPLIT}
        for caption in captions:
            for kind, split in _SPLIT.items():
                said = split(caption) if caption.strip() else []
                parts[kind].append([numbers.setdefault(part, len(numbers)) for part in said])
        return cls(list(numbers), parts)

    def rows(self, granularity: Sequence[Granularity]) -> list[list[int]]:
        """For each caption the rows of its parts at these granularities, without repeats; the null row is first."""
        together = zip(*(self.parts[kind] for kind in granularity), strict=True)
        return [[0, *dict.fromkeys(number for parts in caption for number in parts)] for caption in together]
