"""Snapshot and validation alone, without a run: what ``triptych validate`` does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from components.snapshot_data.snapshot import take_snapshot
from components.validate_data.validate import validate
from lineage.digests import LineageError
from pipelines.configuration import Configuration
from pipelines.narration import Narration, say


def validate_source(configuration: Configuration, out: Path) -> bool:
    """Pin and judge the data of ``configuration`` in the folder ``out``, and print what came of it.

    What is known of unchanged files, and the facts that drift is measured against, stay in ``out/state``; what the
    steps and their libraries say goes to ``out/validate.log``, of which progress alone is shown.

    Returns:
        Whether the data may be trained on.
    """
    console, validated, problem = Console(file=sys.stdout), out / "validated", ""
    summary = validated / "summary.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        summary.unlink(missing_ok=True)
        with Narration(console, out / "validate.log"):
            taken = take_snapshot(configuration.data, out / "snapshot", out / "state")
            say(console, f"snapshot {taken.digest}: {taken.rows} rows, {taken.refused} refused")
            validate(configuration.validation, out / "snapshot", validated, out / "state")
    except (LineageError, OSError) as error:
        problem = str(error)
    if summary.is_file():
        _print_summary(console, json.loads(summary.read_text(encoding="utf-8")))
        say(console, f"pictures and reasons: {validated / 'report.html'}")
    say(console, *((f"refused: {problem}", "red") if problem else ("accepted", "green")))
    return not problem


def _print_summary(console: Console, summary: dict[str, object]) -> None:
    table = Table("expectation", "severity", "holds", "observed")
    expectations = summary["expectations"]
    assert isinstance(expectations, list)
    for one in expectations:
        holds = "yes" if one["holds"] else "[red]no[/red]"
        table.add_row(one["description"], one["severity"], holds, one["error"] or one["observed"])
    console.print(table)
    counts = ("rows", "accepted", "quarantined", "refused_before")
    say(console, ", ".join(f"{summary[name]} {name.replace('_', ' ')}" for name in counts))
