"""Register: every judged candidate becomes a version of the registered model, with all its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineage.digests import LineageError, digest_path
from lineage.keys import evaluation_key
from lineage.registry import Registry, Version
from lineage.statements import VERDICT, Statement, read_statement


def register_candidate(
    store: Registry,
    mlflow_run: str,
    candidate: Path,
    verdict: Path,
    evidence: Mapping[str, Path],
    keys: Mapping[str, str],
) -> Version:
    """Store ``candidate`` with its verdict and evidence; the decision does not matter, a rejected one is kept too.

    Args:
        verdict: the folder that the gate wrote.
        evidence: name -> what else to keep beside it.
        keys: ``snapshot``, ``training_key``, ``evaluation_terms`` of the plan.

    Raises:
        LineageError: the verdict is about other weights.
    """
    statement = read_statement(verdict / "verdict.json", VERDICT)
    digest = digest_path(candidate)
    if statement.subject_digest("candidate") != digest:
        raise LineageError(f"the verdict is about {statement.subject_digest('candidate')}, the candidate is {digest}")
    incumbent = statement.predicate["evaluation"]["incumbent"]["digest"]
    tags = {
        "candidate": digest,
        "incumbent": incumbent,
        "decision": statement.predicate["decision"],
        "verdict": digest_path(verdict / "verdict.json"),
        "snapshot": keys["snapshot"],
        "training_key": keys["training_key"],
        "evaluation_key": evaluation_key(digest, incumbent, keys["evaluation_terms"]),
    }
    _log_metrics(store, mlflow_run, statement)
    return store.register(mlflow_run, candidate, {"verdict": verdict, **evidence}, tags, describe(statement))


def describe(statement: Statement) -> str:
    """The verdict as Markdown, for the page of the model version."""
    predicate = statement.predicate
    lines = [
        f"**{predicate['decision']}** against `{predicate['evaluation']['incumbent']['digest'][:19]}…`",
        "",
    ]
    lines += [f"- {reason}" for reason in predicate["reasons"]]
    lines += [
        "",
        "| figure | incumbent | candidate | difference | interval | margin |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['name']} | {f['incumbent']:.3f} | {f['candidate']:.3f} | {f['difference']:+.3f} "
        f"| {f['lower']:+.3f} to {f['upper']:+.3f} | {f['margin']:g} |"
        for f in predicate["figures"]
    ]
    return "\n".join(lines)


def _log_metrics(store: Registry, mlflow_run: str, statement: Statement) -> None:
    for figure in statement.predicate["figures"]:
        for part in ("incumbent", "candidate", "difference", "lower", "upper"):
            name = f"gate/{figure['name']}/{part}"
            store.client.log_metric(mlflow_run, name.replace(" ", "_"), figure[part])


def summary(version: Version) -> dict[str, Any]:
    """What the record keeps of a registered version."""
    return {"version": version.number, "name": version.name, "tags": dict(version.tags)}
