"""Provenance: how a candidate came to be, as an in-toto Statement with a SLSA v1 predicate.

https://slsa.dev/spec/v1.0/provenance. Everything comes from the step records; the statement says no more than they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from lineage.digests import LineageError, digest_set
from lineage.records import StepRecord
from lineage.statements import SLSA, Statement, make_statement

BUILD_TYPE = "urn:triptych:retraining:v1"
"""Says how to read the parameters: step name -> the section of the configuration that it was given."""
BUILDER = "urn:triptych:pipeline:v1"


def provenance(run_id: str, records: Mapping[str, StepRecord], candidate: str) -> Statement:
    """State which run, parameters, data, models and code gave the weights with digest ``candidate``.

    Args:
        records: step name -> record, of this run.

    Raises:
        LineageError: no step on record gave this candidate.
    """
    if not any(candidate in record.outputs.values() for record in records.values()):
        raise LineageError(
            f"no step of run {run_id} gave the candidate {candidate}; its provenance would be made up: "
            "run again, and keep the records of every step"
        )
    metadata = {"invocationId": run_id, "startedOn": _timestamp(min(record.started for record in records.values()))}
    if ended := [record.ended for record in records.values() if record.ended]:
        metadata["finishedOn"] = _timestamp(max(ended))
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {step: record.parameters for step, record in records.items()},
        "internalParameters": {
            step: {"user": record.user, "host": record.host, "commit": record.commit}
            for step, record in records.items()
        },
        "resolvedDependencies": [_described(*named) for named in dependencies(records)]
        + _commits(records)
        + _reused(records, candidate),
    }
    details = {
        "builder": {"id": BUILDER, "version": {"triptych": version("triptych")}},
        "metadata": metadata,
        "byproducts": [_described(f"step record {step}", record.digest()) for step, record in records.items()],
    }
    return make_statement(SLSA, {"candidate": candidate}, {"buildDefinition": definition, "runDetails": details})


def _described(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": digest_set(digest)}


def dependencies(records: Mapping[str, StepRecord]) -> list[tuple[str, str]]:
    """(name, digest) of the snapshot, of all that a step took and no step gave, and of code, packages and image."""
    given = {digest for record in records.values() for digest in record.outputs.values()}
    found: list[tuple[str, str]] = []
    for step, record in records.items():
        found += [(name, digest) for name, digest in record.inputs.items() if digest not in given]
        if step == "snapshot-data":
            found += record.outputs.items()
        if step == "evaluate":
            found += _judges(record.facts)
        found += [("code", record.code), ("packages", record.packages)]
        if record.image:
            found.append(("image", record.image))
    return sorted(set(found))


def _judges(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    scorers = [(f"scorer {scorer['name']}", scorer["digest"]) for scorer in facts.get("scorers", [])]
    return [*scorers, ("evaluation set", facts["evaluation_set"]["digest"])] if "evaluation_set" in facts else scorers


def _commits(records: Mapping[str, StepRecord]) -> list[dict[str, Any]]:
    """The commit of the code; a checkout that had changes is none, and only the digest ``code`` names it."""
    commits = sorted({record.commit for record in records.values()} - {""})
    return [{"name": "commit", "digest": {"gitCommit": c}} for c in commits if not c.endswith("-dirty")]


def _reused(records: Mapping[str, StepRecord], candidate: str) -> list[dict[str, Any]]:
    """A candidate that was fetched, not trained, by this run says so."""
    uris = [record.facts["reused"] for record in records.values() if "reused" in record.facts]
    return [_described("reused candidate", candidate) | {"uri": uri} for uri in uris]


def _timestamp(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
