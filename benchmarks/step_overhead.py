"""What runs cost beside their steps' work: `python -m benchmarks.step_overhead WORK_DIR...`.

Reads the records that the last run in each work folder left. A step's own time is from its record's start to its end;
the run's wall time is from the start of its first record to the end of its last. What lies between is what the runner,
the interpreter and, in containers, the engine take to have the next step begin. The last line is the ratio of wall time
to own time in the last folder.

    triptych retrain --config CONFIG --runner processes --work-dir A
    triptych retrain --config CONFIG --runner containers --work-dir B
    python -m benchmarks.step_overhead A B
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from lineage.records import StepRecord, read_records
from pipelines.workspace import Workspace


class Cost(NamedTuple):
    """Seconds of one run."""

    steps: int
    wall: float
    own: float

    @property
    def ratio(self) -> float:
        """Wall time to the steps' own."""
        return self.wall / self.own

    @property
    def between(self) -> float:
        """From a step's end to the next one's start, on average."""
        return (self.wall - self.own) / (self.steps - 1)

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, wall {self.wall:.1f} s, own {self.own:.1f} s, ratio {self.ratio:.2f}, "
            f"{self.between:.2f} s from step to step"
        )


def cost(records: Mapping[str, StepRecord]) -> Cost:
    """What a run cost whose steps all ended."""
    spans = [tuple(map(datetime.fromisoformat, (one.started, one.ended or ""))) for one in records.values()]
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    return Cost(len(spans), wall.total_seconds(), sum((end - start).total_seconds() for start, end in spans))


def main(folders: list[str]) -> None:
    """Print each folder's last run, and the ratio of the last."""
    for folder in folders:
        records = Workspace(Path(folder)).records
        run = max(path.name for path in records.iterdir())  # named after its time
        found = cost(read_records(str(records), run))
        print(f"{folder}: {found}")
    print(f"{found.ratio:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
