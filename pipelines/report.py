"""The end of a run and the state of the registry, as short tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lineage.digests import short
from lineage.documents.figures import cells
from lineage.registry import Registry
from pipelines.retrain import Finished

STYLES = {
    "promote": "green",
    "hold": "yellow",
    "reject": "red",
    "invalid": "red",
    "nothing-new": "green",
    "busy": "yellow",
}


def print_outcome(console: Console, finished: Finished, root: Path, model_name: str) -> None:
    """Three axes, incumbent beside candidate, interval, verdict, and where to look next."""
    if finished.outcome == "failed":
        console.print(f"[red]failed[/red]: {finished.failure}", highlight=False, soft_wrap=True)
        console.print(f"  the whole output: {finished.log}", highlight=False, soft_wrap=True)
        return
    if finished.outcome in ("nothing-new", "busy"):
        style, reason = STYLES[finished.outcome], finished.records["nothing-new"].parameters["reason"]
        console.print(f"[{style}]{reason}[/{style}]", highlight=False, soft_wrap=True)
        return
    gate, plan = finished.records["gate"].facts, finished.records["plan"].facts
    if gate["figures"]:
        console.print(_figures_table(gate["figures"], "incumbent", plan["incumbent_name"]))
    if gate.get("anchor"):
        console.print(_figures_table(gate["anchor"], "approved", "the last version that a person approved"))
    style = STYLES[gate["decision"]]
    console.print(f"verdict: [bold {style}]{gate['decision']}[/bold {style}]", highlight=False, soft_wrap=True)
    for reason in gate["reasons"]:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)
    promoted = finished.records["promote"].facts
    moved = f"alias {promoted['alias']} -> " if promoted["alias"] else ""
    console.print(f"{moved}{model_name} version {promoted['version']}", highlight=False, soft_wrap=True)
    console.print(
        f"look: triptych ui --work-dir {root}   triptych models --work-dir {root}", highlight=False, soft_wrap=True
    )


def _figures_table(figures: list[dict[str, Any]], other: str, name: str) -> Table:
    table = Table(title=f"candidate against {name}")
    for column in ("", other, "candidate", "difference", "interval", "margin", "holds"):
        table.add_column(column, justify="left" if not column else "right")
    for figure in figures:
        holds = figure["lower"] > -figure["margin"]
        table.add_row(
            *cells(figure),
            "yes" if holds else "[red]no[/red]",
            end_section=figure["name"] == "aesthetics",
        )
    return table


def print_versions(console: Console, store: Registry) -> None:
    """Every version with its aliases and verdict."""
    table = Table(title=store.model_name)
    for column in ("version", "alias", "verdict", "against", "weights", "MLflow run"):
        table.add_column(column)
    versions = store.versions()
    owners = {version.tags.get("candidate"): f"version {version.number}" for version in reversed(versions)}
    for version in versions:
        decision = version.tags.get("decision", "?")
        incumbent = version.tags.get("incumbent", "?")
        style = STYLES.get(decision, "red")
        table.add_row(
            version.number,
            ", ".join(version.aliases),
            f"[{style}]{decision}[/{style}]",
            owners.get(incumbent, "base model"),
            short(version.tags.get("candidate", "?")),
            version.mlflow_run[:8],
        )
    console.print(table)
