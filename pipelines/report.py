"""The end of a run and the state of the registry, as short tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineage.digests import short
from lineage.figures import cells
from lineage.registry import Registry
from pipelines.narration import say
from pipelines.retrain import Finished

GOOD, OPEN, BAD = "green", "yellow", "red"
STYLES = {"promote": GOOD, "nothing-new": GOOD, "hold": OPEN, "busy": OPEN, "reject": BAD, "invalid": BAD}


def print_outcome(console: Console, finished: Finished, root: Path, model_name: str) -> None:
    """Three axes, incumbent beside candidate, interval, verdict, and where to look next."""
    if finished.outcome == "failed":
        say(console, f"failed: {finished.failure}", "red")
        say(console, f"  the whole output: {finished.log}")
        return
    if finished.outcome in ("nothing-new", "busy"):
        say(console, finished.records["nothing-new"].parameters["reason"], STYLES[finished.outcome])
        return
    gate, plan = finished.records["gate"].facts, finished.records["plan"].facts
    if gate["figures"]:
        console.print(_figures_table(gate["figures"], "incumbent", plan["incumbent_name"]))
    if gate.get("anchor"):
        console.print(_figures_table(gate["anchor"], "anchor", "the anchor"))
    say(console, f"verdict: {gate['decision']}", f"bold {STYLES[gate['decision']]}")
    for reason in gate["reasons"]:
        say(console, f"  {reason}")
    promoted = finished.records["promote"].facts
    moved = f"alias {promoted['alias']} -> " if promoted["alias"] else ""
    say(console, f"{moved}{model_name} version {promoted['version']}")
    say(console, f"look: triptych ui --work-dir {root}   triptych models --work-dir {root}")


def _figures_table(figures: list[dict[str, Any]], other: str, name: str) -> Table:
    table = Table(title=f"candidate against {name}")
    for column in ("", other, "candidate", "difference", "interval", "margin", "holds"):
        table.add_column(column, justify="left" if not column else "right")
    for figure in figures:
        holds = "yes" if figure["lower"] > -figure["margin"] else "[red]no[/red]"
        table.add_row(*cells(figure), holds, end_section=figure["name"] == "aesthetics")
    return table


def print_versions(console: Console, store: Registry) -> None:
    """Every version with its aliases and verdict."""
    table = Table("version", "alias", "verdict", "against", "weights", "MLflow run", title=store.model_name)
    versions = store.versions()
    owners = {version.tags.get("candidate"): f"version {version.number}" for version in reversed(versions)}
    for version in versions:
        decision, incumbent, candidate = (version.tags.get(tag, "?") for tag in ("decision", "incumbent", "candidate"))
        judged, against = Text(decision, STYLES.get(decision, BAD)), owners.get(incumbent, "base model")
        table.add_row(version.number, ", ".join(version.aliases), judged, against, short(candidate), version.mlflow_run)
    console.print(table)
