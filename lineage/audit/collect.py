"""Putting an audit together: find what was asked about, check what it rests on, gather the answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

from lineage.audit import checks
from lineage.audit.data import MOST_PICTURE, check_pictures, data_of
from lineage.audit.examination import Examination, Sources, called
from lineage.audit.report import Base, Data, Ledger, Registration, Report, Use, Version
from lineage.audit.resolve import Target, UnknownError, resolve, use
from lineage.digests import LineageError
from lineage.entries import Moved, Registered
from lineage.records import StepRecord

SIGHTS = {"grid": "scores/grid.png", "pareto": "verdict/pareto.png"}
"""Pictures to show, by what they are called."""


def audit(what: str, sources: Sources, image: bool = False) -> Report:
    """Answer what stands behind ``what``, and check every digest and signature on the way.

    Args:
        what: a version (``3``, ``champion``, ``NAME/3``), a run, a digest, or the file of a training image, of a
            generated picture, or of evidence.
        image: ask about a training image: every version trained on it.

    Raises:
        UnknownError: the evidence knows nothing of it.
    """
    if not sources.entries:
        raise UnknownError("the ledger is empty: it was never opened, or everything was taken out of it")
    with tempfile.TemporaryDirectory() as scratch:
        x = Examination(sources, Path(scratch))
        checks.check_ledger(x)
        try:
            target = resolve(x, what, image)
        except UnknownError as error:
            if not x.trouble:
                raise
            target = Target("unknown", f"{error}; it may be in the part of the ledger that does not hold")
        records = x.records(target.run) if target.run else {}
        if target.run:
            checks.check_steps(x, target.run, records, target.version)
        version = _version(x, target.version, records) if target.version else None
        x.compare()
        return _report(x, what, target, records, version)


def _report(
    x: Examination, what: str, target: Target, records: dict[str, StepRecord], version: Version | None
) -> Report:
    ended = {keyid: f" until entry {known.until}" for keyid, known in x.state.keys.items() if known.until is not None}
    keys = {keyid: known.role + ended.get(keyid, "") for keyid, known in x.state.keys.items()}
    ledger = {"name": x.state.ledger, "size": x.state.size, "head": x.state.head, "keys": keys}
    return Report(
        what=what,
        kind=target.kind,
        found=target.found,
        ledger=Ledger(**ledger, root=x.sources.root, proven=x.proven),  # type: ignore[arg-type]
        run=target.run,
        outcome=x.state.outcomes.get(target.run, "not closed") if target.run else "",
        records=records,
        version=version,
        uses=target.uses,
        claims=target.claims,
        findings=tuple(x.findings.values()),
        images=x.images,
    )


def _version(x: Examination, version: Registered, records: dict[str, StepRecord]) -> Version:
    predicate, seeds = checks.check_version(x, version)
    for name, path in SIGHTS.items():
        try:
            x.images[name] = x.content(version, path, MOST_PICTURE)
        except LineageError:
            continue  # what does not hold is not shown, and a finding says so
    incumbent, base = x.state.verdicts[version.verdict].incumbent, x.base(version)
    return Version(
        registered=x.entry(version),
        judged=x.judged[version.verdict],
        standing=x.standing(version),
        incumbent_name=_name(x, incumbent, version),
        predicate=predicate,
        seeds=seeds,
        trained_by=_trained_by(x, version, records),
        base=Base(digest=base, name=_name(x, base, version)) if base else None,
        data=tuple(_checked_data(x, one, one is version) for one in (version, *_ancestors(x, version))),
        chain=_chain(x, version),
        moves=tuple(entry for entry in x.moves if _is_about(cast(Moved, entry.body), version)),
        descendants=_descendants(x, version),
    )


def _checked_data(x: Examination, version: Registered, own: bool) -> Data:
    data = data_of(x, version)
    check_pictures(x, data, show=own)
    return data


def _name(x: Examination, digest: str, before: Registered) -> str:
    version = x.version_with(digest, before)
    return called(version) if version else "the base model"


def _ancestors(x: Examination, version: Registered) -> list[Registered]:
    """The versions that a version was trained from, nearest first."""
    found = []
    while following := x.version_with(x.base(version), version):
        found.append(version := following)
    return found


def _trained_by(x: Examination, version: Registered, records: dict[str, StepRecord]) -> StepRecord | None:
    """The step that trained these weights; a run that judged known ones anew says so in its record."""
    own = records.get("fine-tune")
    if own is None or "reused" not in own.facts:
        return own
    subject = f"who trained the weights of {called(version)}"
    with x.checking("records", subject, "a record of an earlier run says that it gave them"):
        first = next(one for one in x.versions if one.candidate == version.candidate)
        found = x.record(first.run, "fine-tune")
        if found is None or "reused" in found.facts or version.candidate not in found.outputs.values():
            raise LineageError(f"run {first.run}, which registered them first, has no record that it trained them")
        return found
    return None


def _chain(x: Examination, version: Registered) -> tuple[Registration, ...]:
    """The version, what it was judged against, what that was judged against, down to the base model."""
    chain: list[Registration] = []
    following: Registered | None = version
    while following:
        if following is not version:
            checks.check_verdict(x, following)
        chain.append(Registration(registered=x.entry(following), judged=x.judged[following.verdict]))
        following = x.version_with(x.state.verdicts[following.verdict].incumbent, following)
    return tuple(chain)


def _is_about(move: Moved, version: Registered) -> bool:
    """Whether a move is to a version or away from it; a withdrawal of another one leaves the champion."""
    away = move.previous_version if move.action != "withdraw" else ""
    return move.model == version.model and version.version in (move.version, away)


def _descendants(x: Examination, version: Registered) -> tuple[Use, ...]:
    """Versions trained from these weights, and versions that were judged against them."""
    found: list[Use] = []
    for other in x.versions:
        hows = ["trained from it"] if x.base(other) == version.candidate else []
        hows += ["judged against it"] if x.state.verdicts[other.verdict].incumbent == version.candidate else []
        found += [use(x, other, " and ".join(hows))] if hows else []
    return tuple(found)
