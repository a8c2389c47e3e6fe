"""A verdict's figures as people read them: one way to write the numbers, for every page and table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

METRICS = "gate/"
"""Begins the names of the metrics that repeat a verdict's figures."""


def cells(figure: Mapping[str, Any]) -> list[str]:
    """Name, the other's score, the candidate's, their difference, its interval, the margin."""
    return [
        figure["name"],
        *(f"{figure[who]:.3f}" for who in ("incumbent", "candidate")),
        f"{figure['difference']:+.3f}",
        f"{figure['lower']:+.3f} to {figure['upper']:+.3f}",
        f"{figure['margin']:g}",
    ]


def metrics(figures: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Figures as MLflow shows them: ``gate/alignment/difference`` -> value. The verdict has the rest."""
    parts = ("candidate", "difference")
    return {f"{METRICS}{f['name']}/{part}".replace(" ", "_"): float(f[part]) for f in figures for part in parts}


def figures_table(figures: Iterable[Mapping[str, Any]], other: str = "incumbent") -> str:
    """Figures as a Markdown table; ``other`` is whom the candidate was compared with."""
    head = ["figure", other, "candidate", "difference", "interval", "margin"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *map(cells, figures)])
