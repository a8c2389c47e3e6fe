"""Plan: decide what has to run, from the two keys of `lineage.keys` and what the ledger knows.

A known training key reuses that candidate; a known evaluation key, or a candidate that already is champion, means
that nothing is new. A changed incumbent alone judges the known candidate anew, without training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lineage.digests import digest_path
from lineage.entries import Registered, Standing, State
from lineage.keys import evaluation_key, evaluation_terms, training_key


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
    anchor_uri: str
    """The last version that a person approved; empty where there is none, or it is the incumbent."""
    anchor_digest: str
    incumbent_name: str
    base_digest: str


def make_plan(
    state: State,
    model: str,
    snapshot_digest: str,
    validation: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    gate: Mapping[str, Any],
    force: bool,
) -> Plan:
    """Look into the ledger and decide.

    Args:
        state: of the ledger; the registry's tags and aliases are not asked.
        model: name of the registered model.
        validation, training, evaluation, gate: the sections of the configuration, ``training`` without what only
            watches the training.
        force: train and judge although nothing is new.

    Raises:
        TrainingError: something has to run, and a scorer holds weights of a network that supervises training.
    """
    versions = [version for (name, _), version in state.versions.items() if name == model]
    champion, anchor = state.champion(model), state.anchor(model)
    if anchor and champion and anchor.candidate == champion.candidate:
        anchor = None
    base_digest = digest_path(training["base_model"])
    incumbent_digest = champion.candidate if champion else base_digest
    key = training_key(snapshot_digest, validation, training)
    terms = evaluation_terms(evaluation, gate)
    known = next((v for v in reversed(versions) if v.training_key == key), None)
    needed, reason = _decide(state, versions, known, champion, incumbent_digest, terms)
    if needed or force:
        from training.leakage import refuse_leakage  # loads torch, which a run with nothing new does without

        refuse_leakage(evaluation, training)
    reuse = None if force else known
    return Plan(
        needed=needed or force,
        reason=f"forced; otherwise: {reason}" if force else reason,
        training_key=key,
        evaluation_terms=terms,
        reuse_uri=f"models:/{model}/{reuse.version}" if reuse else "",
        reuse_digest=reuse.candidate if reuse else "",
        incumbent_uri=f"models:/{model}/{champion.version}" if champion else str(training["base_model"]),
        incumbent_digest=incumbent_digest,
        anchor_uri=f"models:/{model}/{anchor.version}" if anchor else "",
        anchor_digest=anchor.candidate if anchor else "",
        incumbent_name=f"champion (version {champion.version})" if champion else "base model",
        base_digest=base_digest,
    )


def _decide(
    state: State,
    versions: list[Registered],
    known: Registered | None,
    champion: Standing | None,
    incumbent_digest: str,
    terms: str,
) -> tuple[bool, str]:
    if known is None:
        return True, "no candidate was trained from this snapshot, code, configuration and base model yet"
    if known.candidate in state.withdrawn:
        return False, f"nothing is new: this candidate was withdrawn (version {known.version})"
    if champion and known.candidate == champion.candidate:
        return False, f"nothing is new: this candidate already is the champion (version {champion.version})"
    key = evaluation_key(known.candidate, incumbent_digest, terms)
    judged = next((v for v in reversed(versions) if v.evaluation_key == key), None)
    if judged:
        decision = state.verdicts[judged.verdict].decision
        return False, f"nothing is new: version {judged.version} was judged on the same terms: {decision}"
    return (
        True,
        f"the candidate of version {known.version} is known; the incumbent or the terms changed: judge it anew",
    )
