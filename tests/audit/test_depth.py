"""The work of an audit grows with the length of the chain of champions, and no faster."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from components.register.register import create
from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Moved, Registered
from lineage.policy import policy_digest
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement
from pipelines.audit import Sources, audit

DEPTH = 18


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Champions, each judged against the one before it; of their evidence only the verdicts."""
    folder = tmp_path_factory.mktemp("chain")
    home = Embedded(folder / "lineage")
    ledger, policy = home.open(), policy_digest({}, {})
    home.set_policy("m", {}, {}, "for a test")
    store = Registry(f"sqlite:///{folder / 'mlflow.db'}", "m")
    signers = {role: open_signer(home.uri(role)) for role in ("run", "gate", "promotion")}
    before, previous = "", digest_bytes(b"base")
    for number in map(str, range(1, DEPTH + 1)):
        weights, run = digest_bytes(number.encode()), f"run-{number}"
        evidence, mlflow_run = folder / "artifacts" / run / "evidence", store.open_run(run)
        (evidence / "verdict").mkdir(parents=True)
        said: dict[str, Any] = {"run": run, "decision": "promote", "reasons": [], "figures": [], "gate": {}}
        said["evaluation"] = {"incumbent": {"digest": previous}, "evaluation_set": {}, "scorers": [], "terms": {}}
        statement = make_statement(VERDICT, {"candidate": weights}, said)
        envelope = write_statement(statement, evidence / "verdict" / VERDICT_FILE, signers["gate"])
        create(store, mlflow_run, (evidence.parent / "model").as_uri(), {}, "")
        about: dict[str, Any] = {"model": "m", "candidate": weights, "verdict": envelope}
        about_run = {"run": run, "evaluation": "", "policy": policy, "decision": "promote", "incumbent": previous}
        ledger.append(Judged(**about, **about_run), signers["gate"])
        keys = {"training_key": number, "evaluation_terms": number, "mlflow_run": mlflow_run, "folder": weights}
        named = {"version": number, "evidence": {"verdict": digest_path(evidence / "verdict")}}
        ledger.append(Registered(run=run, **about, **keys, **named), signers["run"])
        move: dict[str, Any] = {"action": "promote", "user": "somebody", "reason": "", "version": number}
        ledger.append(Moved(**about, **move, previous_version=before, previous=previous), signers["promotion"])
        before, previous = number, weights
    return Sources(ledger.entries(), home.root, str(folder / "records"), store.tracking_uri)


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
    verdicts = [f for f in report.findings if f"the signature of evidence/verdict/{VERDICT_FILE}" in f.subject]
    assert len(verdicts) == int(what) and {f.standing for f in verdicts} == {"holds"}
    return count


def test_the_work_is_linear_in_the_depth_of_the_chain(chain: Sources) -> None:
    calls(chain, "1")
    six, twelve, eighteen = (calls(chain, str(depth)) for depth in (6, 12, 18))
    first, then = twelve - six, eighteen - twelve
    assert first > 0
    assert abs(then - first) < 0.1 * first, (six, twelve, eighteen)
