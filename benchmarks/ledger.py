"""What a long ledger costs: `python -m benchmarks.ledger [entries]`.

Four figures of one ledger of 10,000 entries in SQLite: verifying an export of it (order, chain, keys, rules and
signatures) beside the bare work of its signatures, five rounds each in turn, medians; an audit of it; and what a run
pays for it in all: twelve steps, each a process of its own that opens the ledger, checks what it has to and appends
its record, as steps do. The last line is the ratio: how much of the time of a whole verification the signatures alone
take. All of them are CPU seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from securesystemslib.signer import Signature

from lineage.database import DatabaseStore
from lineage.embedded import Embedded
from lineage.entries import Recorded
from lineage.ledger import _signed
from lineage.rules import extend, replay
from lineage.signing import open_signer
from lineage.stores import export, read_export
from pipelines.audit import Sources, audit

ROUNDS, STEPS = 5, 12
STEP = """
import sys, time
import lineage.database, lineage.ledger
from lineage.entries import Recorded
from lineage.records import RunContext
began = time.process_time()
context = RunContext.model_validate_json(sys.argv[1])
body = Recorded(run=context.id, step=sys.argv[2], status="complete", record="0" * 71)
context.open_ledger().append(body, context.signer("run"))
print(time.process_time() - began)
"""


def seconds(work: Callable[[], object]) -> float:
    """The CPU seconds that ``work`` takes, which other work on the machine does not change."""
    began = time.process_time()
    work()
    return time.process_time() - began


def run_cost(home: Embedded, folder: Path) -> list[float]:
    """CPU seconds that each step of a run spends on the ledger."""
    context = home.context("the-run", str(folder / "records"), "unused").model_dump_json()
    costs = []
    for step in range(STEPS):
        command = [sys.executable, "-c", STEP, context, f"step-{step}"]
        costs.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return costs


def main(count: int) -> None:
    """Make a ledger of ``count`` entries and time all three."""
    with tempfile.TemporaryDirectory() as folder:
        home = Embedded(Path(folder))
        ledger, signer = home.open(), open_signer(home.uri("run"))
        entries, state = ledger.entries(), ledger.state
        made = []
        for number in range(count - len(entries)):
            body = Recorded(run=f"run-{number // 11}", step=f"step-{number % 11}", status="complete", record="0" * 71)
            made.append(_signed(state, body, signer))
            extend(state, made[-1:])
        DatabaseStore(home.url).write(made)
        entries += made
        path = Path(folder) / "export.jsonl"
        path.write_text(export(entries))
        keys = {known.key.keyid: known.key for known in state.keys.values()}

        def signatures() -> None:
            for entry in entries:
                keys[entry.key].verify_signature(Signature(entry.key, entry.signature), signed[entry.index])

        signed = [entry.signed_bytes() for entry in entries]
        rounds = [(seconds(lambda: replay(read_export(path))), seconds(signatures)) for _ in range(ROUNDS)]
        audits = [seconds(lambda: audit("run-3", Sources(entries, home.root))) for _ in range(ROUNDS)]
        steps = run_cost(home, Path(folder))
    whole, bare = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"{count} entries: verified in {whole:.2f} s, their signatures alone {bare:.2f} s")
    print(f"an audit of one run in it, all its records missing: {statistics.median(audits):.2f} s")
    told = f"the first step {steps[0]:.2f} s, each other one {statistics.median(steps[1:]):.3f} s"
    print(f"a run of {STEPS} steps on it: {sum(steps):.2f} s in all, {told}")
    print(f"signatures / whole: {bare / whole:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
