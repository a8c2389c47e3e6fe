"""The end of a run and the state of the registry, as short tables that fit 80 columns."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineage.digests import hex_of
from lineage.figures import cells
from lineage.registry import Registry
from pipelines.commands.request import WORK
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
    _print_next(console, root, "champion" if promoted["alias"] == "champion" else promoted["version"])


def _print_next(console: Console, root: Path, version: str) -> None:
    """The commands that a person would type next, as they work in this shell and folder."""
    program = "triptych" if shutil.which("triptych") else sys.argv[0]
    place = "" if root.resolve() == WORK.resolve() else f" --work-dir {root}"
    told = {
        f"{program} ui{place}": "MLflow's pages: curves, pictures",
        f"{program} audit {version}{place}": "what stands behind it",
        f"{program} serve{place}": "draw with the champion",
    }
    say(console, "next:")
    for command, what in told.items():
        say(console, f"  {command:<36}  {what}")


def _figures_table(figures: list[dict[str, Any]], other: str, name: str) -> Table:
    table = Table(title=f"candidate against {name}", box=None, padding=(0, 2, 0, 0))
    table.add_column("", min_width=12)
    table.add_column(f"{other} →\ncandidate", justify="right", no_wrap=True, min_width=17)
    for column in ("difference (interval)", "margin", "holds"):
        table.add_column(column, justify="right", no_wrap=True)
    for figure in figures:
        holds = "yes" if figure["lower"] > -figure["margin"] else "[red]no[/red]"
        named, before, after, difference, interval, margin = cells(figure)
        table.add_row(named, f"{before} → {after}", f"{difference} ({interval})", margin, holds)
    return table


def print_versions(console: Console, store: Registry) -> None:
    """Every version with its aliases and verdict."""
    table = Table("version", "alias", "verdict", "against", "weights", "made (UTC)", title=store.model_name)
    versions = store.versions()
    owners = {version.tags.get("candidate"): f"version {version.number}" for version in reversed(versions)}
    for version in versions:
        decision, incumbent, candidate = (version.tags.get(tag, "?") for tag in ("decision", "incumbent", "candidate"))
        judged, against = Text(decision, STYLES.get(decision, BAD)), owners.get(incumbent, "base model")
        made = f"{datetime.fromtimestamp(version.created / 1000, UTC):%Y-%m-%d %H:%M}"
        table.add_row(version.number, ", ".join(version.aliases), judged, against, hex_of(candidate)[:12], made)
    console.print(table)
