"""Captions split into phrases and clauses: the granularity of the supervision.

The rule is plain and the same for every caption: cut at sentence ends, commas, semicolons and colons, and before
the words that open a clause in a description of a portrait ("with", "wearing", "in front of", "and" ...). The
opening word stays with its phrase ("with glasses", "without a beard": the difference matters), except "and".
"""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"\s*[,;:.!?()\n]+\s*")
_OPENERS = (
    "in front of", "on top of", "without", "wearing", "holding", "having", "against", "behind", "beside",
    "under", "with", "while", "and", "who", "that", "which", "no",
)  # fmt: skip
_CLAUSE = re.compile(r"\s+(?=(?:" + "|".join(_OPENERS) + r")\b)", re.IGNORECASE)
_LEADING_AND = re.compile(r"^and\s+", re.IGNORECASE)
_OPENERS_ALONE = frozenset(_OPENERS)


def split_caption(caption: str) -> list[str]:
    """The phrases of ``caption``, in order, without repeats; empty for an empty caption.

    >>> split_caption("a portrait of a woman with red hair and glasses, wearing a blue shirt")
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
