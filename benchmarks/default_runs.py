"""What the gate said of the embedded default's three runs: `python -m benchmarks.default_runs WORK_DIR [--docs DOCS]`.

After `make retrain`, `make plain` and `make shuffled` this reads the work folder's records and prints a line of JSON a
run: the verdict with its figures, the candidate's digest, what selection chose, and the seconds of steps and run. With
`--docs` the lines go to `default-runs.jsonl` there, and the table of `table` is printed, as `avatars.md` has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lineage.records import StepRecord, read_records

LINES = "default-runs.jsonl"
AXES = ("alignment", "realism", "aesthetics")


def seconds(record: StepRecord) -> float:
    """How long the step took, in seconds."""
    return (datetime.fromisoformat(str(record.ended)) - datetime.fromisoformat(record.started)).total_seconds()


def name_of(records: Mapping[str, StepRecord]) -> str:
    """Which of the three it was: plain replays nothing, shuffled reads another folder."""
    if not records["fine-tune"].facts["settings"]["replay"].get("captions"):
        return "plain"
    source = str(records["snapshot-data"].parameters["source"]).rstrip("/")
    return "shuffled" if source.endswith("shuffled") else "retrain"


def line_of(records: Mapping[str, StepRecord]) -> dict[str, Any]:
    """What is kept of one run."""
    gate, tuned = records["gate"], records["fine-tune"]
    began, ended = (datetime.fromisoformat(str(time)) for time in (records["snapshot-data"].started, gate.ended))
    chosen = tuned.facts.get("selection") or {}
    return {
        "run": name_of(records),
        "decision": gate.facts["decision"],
        "reasons": gate.facts["reasons"],
        "figures": gate.facts["figures"],
        "candidate": tuned.outputs["candidate"],
        "machine": tuned.facts["machine"],
        "device": tuned.facts["device"],
        "chosen": chosen.get("chosen"),
        "seconds": {
            "snapshot to gate": (ended - began).total_seconds(),
            "training": tuned.facts["seconds"]["training"],
            "selection": chosen.get("seconds"),
            **{step: seconds(record) for step, record in records.items()},
        },
    }


def table(lines: Iterable[Mapping[str, Any]]) -> str:
    """The runs as a Markdown table: the three axes, and what did not hold."""
    rows = ["| run | verdict | " + " | ".join(AXES) + " | does not hold |", "|---" * (3 + len(AXES)) + "|"]
    for line in lines:
        figures = {figure["name"]: figure for figure in line["figures"]}
        means = [f"{figures[axis]['incumbent']:.3f} → {figures[axis]['candidate']:.3f}" for axis in AXES]
        broken = [name for name, figure in figures.items() if figure["lower"] < -figure["margin"]]
        cells = [f"`make {line['run']}`", f"**{line['decision']}**", *means, ", ".join(broken) or "–"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Read the work folder and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--docs", type=Path)
    asked = parser.parse_args()
    folder = asked.work_dir / "pipeline" / "records"
    every = [read_records(str(folder), run.name) for run in sorted(folder.iterdir())]
    lines = [line_of(records) for records in every if "gate" in records]
    told = "".join(json.dumps(line) + "\n" for line in lines)
    if asked.docs is None:
        print(told, end="")
        return
    (asked.docs / LINES).write_text(told, "utf-8")
    print(table(lines))


if __name__ == "__main__":
    main()
