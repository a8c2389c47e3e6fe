"""Plan: decide what has to run, from what `components.plan.keys` names and the ledger knows.

A known training key reuses that candidate; a candidate that was judged against today's incumbent on the same terms,
or already is champion, means that nothing is new. A changed incumbent alone judges the known candidate anew, without
training; so does a candidate whose run was approved and ended before it could promote.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from components.plan.keys import evaluation_terms, training_key
from lineage.clock import now
from lineage.digests import LineageError, digest_path
from lineage.entries import BusyError, Leased, Registered
from lineage.policy import by_content, changes
from lineage.records import RunContext
from lineage.registry import RegistrySettings
from lineage.state import Champion, State
from training.settings import teachers

Sections = Mapping[str, Mapping[str, Any]]
"""Sections of the configuration by name: ``validation``, ``training`` (without what only watches the training),
``evaluation`` and ``gate``."""
LOOK_AGAIN = 10.0
"""Seconds between two looks at a lease that somebody else holds."""


@dataclass(frozen=True)
class Plan:
    """What has to run, and against whom."""

    needed: bool
    reason: str
    """In plain words."""
    training_key: str = ""
    evaluation_terms: str = ""
    reuse_uri: str = ""
    """Where a known candidate's weights are; empty: train."""
    reuse_digest: str = ""
    incumbent_uri: str = ""
    incumbent_digest: str = ""
    anchor_uri: str = ""
    """As `lineage.state.State.anchor` has it; empty where there is none, or it is the incumbent."""
    anchor_digest: str = ""
    incumbent_name: str = ""
    busy: bool = False
    """Another run has the model's lease, and this one does not wait."""


def plan_run(
    context: RunContext,
    settings: RegistrySettings,
    snapshot_digest: str,
    sections: Sections,
    force: bool,
) -> Plan:
    """Take the model's lease, hold this run's policy against the ledger's, and decide; see `make_plan`.

    Raises:
        LineageError: the policy is not the one that the ledger pins.
    """
    model = settings.model_name
    try:
        take_lease(context, model, settings.lease_hours, wait=settings.busy == "wait")
    except BusyError as error:
        return Plan(needed=False, reason=f"busy: {error}", busy=True)
    state = context.open_ledger().refresh()  # what a run that was waited for did is part of it
    check_policy(state, model, sections["evaluation"], sections["gate"])
    return make_plan(state, model, snapshot_digest, sections, force, automatic=settings.mode == "auto")


def take_lease(context: RunContext, model: str, hours: float, wait: bool) -> None:
    """Have ``model`` for this run until it is closed, or for ``hours``, should it never be closed.

    Args:
        wait: for the run that has it; its lease ends with it, or expires where it died.

    Raises:
        BusyError: another run has it, and this one does not wait.
    """
    ledger, signer = context.open_ledger(), context.signer("run")
    while True:
        try:
            ledger.append(Leased(model=model, run=context.id, expires=now(timedelta(hours=hours))), signer)
            return
        except BusyError as error:
            if not wait:
                raise
            print(f"waiting: {error}", flush=True)
            time.sleep(LOOK_AGAIN)


def make_plan(
    state: State,
    model: str,
    snapshot_digest: str,
    sections: Sections,
    force: bool,
    leakage: bool = True,
    automatic: bool = False,
) -> Plan:
    """Look into the ledger and decide.

    Args:
        state: of the ledger; the registry's tags and aliases are not asked.
        model: name of the registered model.
        force: train and judge although nothing is new.
        automatic: a promote verdict moves the champion without a person.
        leakage: look for leakage where something has to run and a network supervises, which reads weights.

    Raises:
        TrainingError: something has to run, and a scorer holds weights of a network that supervises training.
    """
    training, evaluation = sections["training"], sections["evaluation"]
    versions = list(state.versions.get(model, {}).values())
    champion, anchor = state.champion(model), state.anchor(model)
    if anchor and champion and anchor.candidate == champion.candidate:
        anchor = None
    incumbent_digest = champion.candidate if champion else digest_path(training["base_model"])
    key = training_key(snapshot_digest, sections["validation"], training)
    terms = evaluation_terms(evaluation, sections["gate"])
    known = next((v for v in reversed(versions) if v.training_key == key), None)
    needed, reason = _decide(state, versions, known, champion, incumbent_digest, terms, automatic)
    if leakage and (needed or force) and teachers(training):
        from training.teach.leakage import refuse_leakage

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
    )


def _decide(
    state: State,
    versions: list[Registered],
    known: Registered | None,
    champion: Champion | None,
    incumbent_digest: str,
    terms: str,
    automatic: bool,
) -> tuple[bool, str]:
    if known is None:
        return True, "no candidate was trained from this snapshot, code, configuration and base model yet"
    if known.candidate in state.withdrawn:
        return False, f"nothing is new: this candidate was withdrawn (version {known.version})"
    if champion and known.candidate == champion.candidate:
        return False, f"nothing is new: this candidate already is the champion (version {champion.version})"
    for version in reversed(versions):
        judged = state.verdicts[version.verdict]
        decided = (version.candidate, judged.incumbent, version.evaluation_terms)
        if decided == (known.candidate, incumbent_digest, terms):
            if automatic and judged.decision == "promote" and version.verdict not in state.used:
                return True, f"version {version.version} was approved, and its run ended before it became champion"
            return False, f"nothing is new: version {version.version} was judged on the same terms: {judged.decision}"
    return (
        True,
        f"the candidate of version {known.version} is known; the incumbent or the terms changed: judge it anew",
    )


def check_policy(state: State, model: str, evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> None:
    """Refuse a run whose verdict could not promote, before anything is trained.

    Raises:
        LineageError: the ledger pins another policy for the model, or none.
    """
    pinned = state.policies.get(model)
    if pinned is None:
        raise LineageError(f"the ledger pins no policy for {model}; enter this run's with: triptych policy set")
    if told := changes(pinned, by_content(evaluation), gate):
        raise LineageError(
            f"this run's policy is not the one that the ledger pins for {model} ({'; '.join(told)}): run with that "
            "one, or have it changed with: triptych policy set"
        )
