"""The work of an audit grows with the length of the chain of champions, and no faster."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lineage.audit import Sources, audit
from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Completed, Intended, Judged, Registered
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement

DEPTH = 18


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Champions, each judged against the one before it; of their evidence only the verdicts."""
    folder = tmp_path_factory.mktemp("chain")
    home = Embedded(folder / "lineage")
    ledger = home.open()
    store = Registry(f"sqlite:///{folder / 'mlflow.db'}", "m")
    signers = {role: open_signer(home.uri(role)) for role in ("run", "gate", "promotion")}
    before, previous = "", digest_bytes(b"base")
    for number in map(str, range(1, DEPTH + 1)):
        weights, run = digest_bytes(number.encode()), store.open_run(f"run-{number}")
        verdict = Path(store.client.get_run(run).info.artifact_uri.removeprefix("file://")) / "evidence" / "verdict"
        verdict.mkdir(parents=True)
        said: dict[str, Any] = {"run": f"run-{number}", "decision": "promote", "reasons": [], "figures": []}
        said["evaluation"] = {"incumbent": {"digest": previous}, "evaluation_set": {}, "scorers": []}
        statement = make_statement(VERDICT, {"candidate": weights}, said)
        envelope = write_statement(statement, verdict / VERDICT_FILE, signers["gate"])
        about: dict[str, Any] = {"candidate": weights, "verdict": envelope}
        judged = Judged(run=f"run-{number}", incumbent=previous, decision="promote", **about)
        ledger.append(judged, signers["gate"])
        named: dict[str, Any] = {"model": "m", "version": number, **about}
        keys = {"training_key": number, "evaluation_key": number, "mlflow_run": run}
        evidence = {"verdict": digest_path(verdict)}
        ledger.append(Registered(run=f"run-{number}", evidence=evidence, **named, **keys), signers["run"])
        move = {"move": number, "action": "promote", "user": "somebody", "reason": ""}
        ledger.append(
            Intended.model_validate({**named, **move, "previous_version": before, "previous": previous}),
            signers["promotion"],
        )
        ledger.append(Completed(move=number), signers["promotion"])
        before, previous = number, weights
    return Sources(ledger.all, home.root, str(folder / "records"), store)


def calls(sources: Sources, what: str) -> int:
    """How many functions of `lineage` an audit calls."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and "/lineage/" in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        report = audit(what, sources)
    finally:
        sys.setprofile(None)
    assert report.version and len(report.version.chain) == int(what)
    verdicts = [f for f in report.findings if VERDICT_FILE in f.subject]
    assert len(verdicts) == int(what) and {f.standing for f in verdicts} == {"holds"}
    return count


def test_the_work_is_linear_in_the_depth_of_the_chain(chain: Sources) -> None:
    calls(chain, "1")
    six, twelve, eighteen = (calls(chain, str(depth)) for depth in (6, 12, 18))
    first, then = twelve - six, eighteen - twelve
    assert first > 0
    assert abs(then - first) < 0.1 * first, (six, twelve, eighteen)
