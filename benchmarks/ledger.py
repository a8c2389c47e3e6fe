"""Verifying a ledger against the bare work of its signatures: `python -m benchmarks.ledger [entries]`.

Both sides in one run, five rounds each in turn, medians. The last line is the ratio: how much of the time of a whole
verification (read the export, check order, chain, keys, rules and signatures) is the signatures alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from securesystemslib.signer import Signature

from lineage.embedded import Embedded
from lineage.entries import Recorded, replay
from lineage.ledger import _signed, export, read_export
from lineage.signing import open_signer

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(count: int) -> None:
    """Make an export of ``count`` entries and time both."""
    with tempfile.TemporaryDirectory() as folder:
        home = Embedded(Path(folder))
        ledger, signer = home.open(), open_signer(home.uri("run"))
        entries, state = list(ledger.all), ledger.state
        for number in range(count - len(entries)):
            body = Recorded(run=f"run-{number // 11}", step=f"step-{number % 11}", status="complete", record="0" * 71)
            entries.append(_signed(state, body, signer))
            state.apply(entries[-1], verified=True)
        path = Path(folder) / "export.jsonl"
        path.write_text(export(entries))
        keys = {known.key.keyid: known.key for known in state.keys.values()}

        def signatures() -> None:
            for entry in entries:
                keys[entry.key].verify_signature(Signature(entry.key, entry.signature), signed[entry.index])

        signed = [entry.signed_bytes() for entry in entries]
        rounds = [(seconds(lambda: replay(read_export(path))), seconds(signatures)) for _ in range(ROUNDS)]
    whole, bare = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"{count} entries: verified in {whole:.2f} s, their signatures alone {bare:.2f} s")
    print(f"signatures / whole: {bare / whole:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
