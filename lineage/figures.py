"""The figures of a verdict as people read them: every table of them, in whatever format, has these cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Figure = Mapping[str, Any]
"""A figure as a verdict's predicate has it: name, incumbent, candidate, difference, lower, upper, margin, ..."""


def headings(other: str = "incumbent") -> tuple[str, ...]:
    """The names of `cells`; ``other`` is whom the candidate was compared with."""
    return "figure", other, "candidate", "difference", "interval", "margin", "holds"


def cells(figure: Figure) -> tuple[str, ...]:
    """One row."""
    return (
        str(figure["name"]),
        f"{figure['incumbent']:.3f}",
        f"{figure['candidate']:.3f}",
        f"{figure['difference']:+.3f}",
        f"{figure['lower']:+.3f} to {figure['upper']:+.3f}",
        f"{figure['margin']:g}",
        "yes" if figure["lower"] > -figure["margin"] else "no",
    )


def markdown(figures: Iterable[Figure], other: str = "incumbent") -> str:
    """A Markdown table."""
    rows = [headings(other), ["---"] * len(headings()), *map(cells, figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
