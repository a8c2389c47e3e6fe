"""Plan: decide what has to run, from the two keys of `lineage.keys`.

A known training key reuses that candidate; a known evaluation key, or a candidate that already is champion, means
that nothing is new. A changed incumbent alone judges the known candidate anew, without training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lineage.digests import digest_path
from lineage.keys import evaluation_key, evaluation_terms, training_key
from lineage.registry import CHAMPION, Registry, Version


@dataclass(frozen=True)
class Plan:
    """What has to run, and against whom."""

    needed: bool
    reason: str
    """In plain words."""
    training_key: str
    evaluation_terms: str
    reuse_uri: str
    """Where a known candidate's weights are; empty: train."""
    reuse_digest: str
    incumbent_uri: str
    incumbent_digest: str
    incumbent_name: str
    base_digest: str


def make_plan(
    store: Registry,
    snapshot_digest: str,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    gate: Mapping[str, Any],
    force: bool,
) -> Plan:
    """Look into the registry and decide.

    Args:
        training, evaluation, gate: the sections of the configuration.
        force: train and judge although nothing is new.
    """
    versions = store.versions()
    champion = next((v for v in versions if CHAMPION in v.aliases), None)
    base_digest = digest_path(training["base_model"])
    incumbent_digest = champion.tags["candidate"] if champion else base_digest
    key = training_key(snapshot_digest, training)
    terms = evaluation_terms(evaluation, gate)
    known = next((v for v in reversed(versions) if v.tags.get("training_key") == key), None)
    needed, reason = _decide(versions, known, champion, incumbent_digest, terms)
    reuse = None if force else known
    return Plan(
        needed=needed or force,
        reason=f"forced; otherwise: {reason}" if force else reason,
        training_key=key,
        evaluation_terms=terms,
        reuse_uri=reuse.uri if reuse else "",
        reuse_digest=reuse.tags["candidate"] if reuse else "",
        incumbent_uri=champion.uri if champion else str(training["base_model"]),
        incumbent_digest=incumbent_digest,
        incumbent_name=f"champion (version {champion.number})" if champion else "base model",
        base_digest=base_digest,
    )


def _decide(
    versions: list[Version],
    known: Version | None,
    champion: Version | None,
    incumbent_digest: str,
    terms: str,
) -> tuple[bool, str]:
    if known is None:
        return True, "no candidate was trained from this snapshot, code, configuration and base model yet"
    candidate = known.tags["candidate"]
    if champion and candidate == incumbent_digest:
        return False, f"nothing is new: this candidate already is the champion (version {champion.number})"
    key = evaluation_key(candidate, incumbent_digest, terms)
    judged = next((v for v in reversed(versions) if v.tags.get("evaluation_key") == key), None)
    if judged:
        return (
            False,
            f"nothing is new: version {judged.number} was judged on the same terms: {judged.tags['decision']}",
        )
    return (
        True,
        f"the candidate of version {known.number} is known; the incumbent or the terms changed: judge it anew",
    )
