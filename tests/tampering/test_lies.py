"""Lies signed into the ledger by a holder of the run's or the gate's key: digests hold, and what they say does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lineage.policy import policy_digest
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, read_statement, write_statement
from pipelines.audit import Report, write_page, write_text
from tests.audit.world import MODEL, TERMS, World, lying, registered_with
from tests.tampering.test_evidence import named


def reason(report: Report, subject: str) -> str:
    """Why what is called so does not hold."""
    found = [f.reason for f in report.findings if f.subject == subject and f.standing == "does not hold"]
    assert found, write_text(report)[-4000:]
    return found[0]


def test_a_refused_image_that_is_struck_out(world: World) -> None:
    def strike(evidence: Path) -> None:
        path = evidence / "validated" / "quarantine.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)

    number = registered_with(world, strike)
    report = world.audit(number)
    assert "accepted and refused rows together says" in reason(report, "snapshot in run run-2")
    assert report.version and report.version.data[0].refused is None


def test_a_manifest_with_other_rights(world: World) -> None:
    def improve(evidence: Path) -> None:
        path = evidence / "validated" / "manifest.parquet"
        rows = pq.read_table(path).to_pylist()
        rows[0]["license"] = "CC0-1.0 and more"
        pq.write_table(pa.Table.from_pylist(rows), path)

    report = world.audit(registered_with(world, improve))
    assert "the manifest says" in reason(report, "accepted in run run-2")
    assert report.version and report.version.data[0].pictures is None, "what does not hold is not shown"


def test_another_evaluation_than_the_verdicts(world: World) -> None:
    def improve(evidence: Path) -> None:
        path = evidence / "scores" / "evaluation.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "sampling": {}}))

    report = world.audit(registered_with(world, improve))
    assert "scores/evaluation.json says" in reason(report, "evaluation in run run-2")


def test_scores_and_samples_that_do_not_fit(world: World) -> None:
    def strike(evidence: Path) -> None:
        (evidence / "scores" / "samples" / "candidate" / "p1-7.png").unlink()

    number = registered_with(world, strike)
    assert "candidate/p1-7.png" in next(
        f.reason for f in world.audit(number).findings if f.subject == f"evidence/scores/samples of {told(number)}"
    )


def told(number: str) -> str:
    return f"version {number} of {MODEL}"


def judged_with(world: World, role: str, change: dict[str, Any], said: dict[str, Any]) -> str:
    """Version 3 registered once more, with a verdict that says otherwise than the ledger; gives its number.

    Args:
        role: whose key signs the verdict.
        change: of the verdict's predicate.
        said: what the gate's key says of it in the ledger.
    """
    third, ledger = world.registered("3"), world.home.open("tests")
    path = world.evidence("3") / "verdict" / VERDICT_FILE
    real = read_statement(path, VERDICT, ledger.state.keys_of("gate"))
    statement = make_statement(VERDICT, {"candidate": third.candidate}, {**real.predicate, "run": "run-9", **change})
    made = world.folder / VERDICT_FILE
    digest = write_statement(statement, made, open_signer(world.home.uri(role)))
    entry = ledger.state.verdicts[third.verdict].model_copy(update={"run": "run-9", "verdict": digest, **said})
    ledger.append(entry, open_signer(world.home.uri("gate")))
    copy = partial(shutil.copyfile, made)
    about = {"run": "run-9", "verdict": digest}
    return registered_with(world, lambda evidence: copy(evidence / "verdict" / VERDICT_FILE), "3", about)


def test_a_verdict_that_another_key_signed(world: World) -> None:
    """The gate's key names it, and did not sign it."""
    number = judged_with(world, "run", {}, {})
    subject = f"the signature of evidence/verdict/{VERDICT_FILE} of {told(number)}"
    report = world.audit(number)
    assert "signature does not hold" in reason(report, subject)
    assert report.version and report.version.predicate is None


@pytest.mark.parametrize(
    ("change", "said", "name"),
    [
        ({"decision": "promote"}, {}, "decision"),
        ({}, {"incumbent": "sha256:0"}, "incumbent"),
        ({"gate": {"alpha": 0.5}}, {}, "policy"),
        ({}, {"policy": "sha256:0"}, "policy"),
    ],
)
def test_a_verdict_that_says_otherwise_than_the_ledger(
    world: World, change: dict[str, Any], said: dict[str, Any], name: str
) -> None:
    report = world.audit(judged_with(world, "gate", change, said))
    assert "the verdict says" in reason(report, f"{name} in run run-9")
    assert report.version and report.version.predicate is None


def test_a_verdict_under_a_policy_that_was_not_pinned(world: World) -> None:
    """As of a run that was started with other settings behind a governed server: it holds, and can never promote."""
    gate = {"alpha": 0.5}
    number = judged_with(world, "gate", {"gate": gate}, {"policy": policy_digest(TERMS, gate)})
    subject = f"the policy of evidence/verdict/{VERDICT_FILE} of {told(number)}"
    found = [f for f in world.audit(number).findings if f.subject == subject]
    assert [f.standing for f in found] == ["not proven"] and "can never promote" in found[0].reason


@pytest.mark.parametrize("change", [{"reasons": 7}, {"figures": [{"name": "x"}]}, {"anchor": 1}, {"gate": None}])
def test_a_verdict_of_another_form_is_named_and_not_shown(world: World, change: dict[str, Any]) -> None:
    number = judged_with(world, "gate", change, {})
    report = world.audit(number)
    assert not report.holds and report.version and report.version.predicate is None
    assert "what it measured is unknown" in write_text(report) and write_page(report)


def test_a_record_of_another_form_is_shown(world: World) -> None:
    with lying(world, "fine-tune", lambda record: record.parameters.update(seed=["x"])) as entries:
        report = world.audit("2", entries=entries, checkpoints=())
    assert "seed of fine-tune: ['x']" in write_text(report) and write_page(report)


def test_an_override_is_shown_as_one(world: World) -> None:
    replace(world.mover(), user="an officer").move("override", "3", "the gate was wrong")
    text = write_text(world.audit("3"))
    assert "override of version 3, in place of version 2 by an officer: the gate was wrong" in text
    named(world.audit("3", root="0" * 64), "the root key")
