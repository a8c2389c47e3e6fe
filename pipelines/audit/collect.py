"""Putting an audit together: find what was asked about, check what it rests on, gather the answers."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from lineage.digests import LineageError
from lineage.entries import Registered
from lineage.records import StepRecord
from pipelines.audit import checks
from pipelines.audit.data import MOST_PICTURE, check_pictures, data_of
from pipelines.audit.examination import Examination
from pipelines.audit.report import Ledger, Report, Sources, Use, Version
from pipelines.audit.resolve import Target, UnknownError, resolve, use

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
    state, ended = x.state, {key: known.until for key, known in x.state.keys.items()}
    return Report(
        what=what.encode(errors="replace").decode(),
        ledger=Ledger(
            name=state.ledger,
            size=state.size,
            head=state.head,
            root=sources.root,
            proven=x.proven,
            keys={k: v.role + ("" if ended[k] is None else f" until entry {ended[k]}") for k, v in state.keys.items()},
        ),
        outcome=state.outcomes.get(target.run, "not closed") if target.run else "",
        records=records,
        findings=tuple(x.findings.values()),
        images=x.images,
        **{**vars(target), "version": version},
    )


def _version(x: Examination, version: Registered, records: dict[str, StepRecord]) -> Version:
    predicate, seeds = checks.check_version(x, version)
    for sight, path in SIGHTS.items():
        with suppress(LineageError):  # what does not hold is not shown, and a finding says so
            x.images[sight] = x.content(version, path, MOST_PICTURE)
    chain, trained = [version], [version]
    while before := x.version_with(x.registration(chain[-1]).verdict.incumbent, chain[-1]):
        checks.check_verdict(x, before)
        chain.append(before)
    while before := x.version_with(x.base(trained[-1]), trained[-1]):
        trained.append(before)
    data = tuple(data_of(x, one) for one in trained)
    for one in data:
        check_pictures(x, one, show=one is data[0])

    def name(digest: str) -> str:
        known = x.version_with(digest, version)
        return known.name if known else "the base model"

    made = x.registration(version)
    return Version(
        registered=made.registered,
        judged=made.judged,
        standing=x.standing(version),
        incumbent_name=name(made.verdict.incumbent),
        predicate=predicate,
        seeds=seeds,
        trained_by=_trained_by(x, version, records),
        base=x.base(version),
        base_name=name(x.base(version)),
        data=data,
        chain=tuple(x.registration(one) for one in chain),
        moves=tuple(
            entry
            for entry, move in x.moves
            # A withdrawal of another version leaves the champion where it is.
            if version.version in (move.version, move.previous_version if move.action != "withdraw" else "")
            and move.model == version.model
        ),
        descendants=_descendants(x, version),
    )


def _trained_by(x: Examination, version: Registered, records: dict[str, StepRecord]) -> StepRecord | None:
    """The step that trained these weights; a run that judged known ones anew says so in its record."""
    found = records.get("fine-tune")
    if found is None or "reused" not in found.facts:
        return found
    subject = f"who trained the weights of {version.name}"
    with x.checking("records", subject, "a record of an earlier run says that it gave them"):
        first = next(one for one in x.versions if one.candidate == version.candidate)
        found = x.record(first.run, "fine-tune")
        if found is None or "reused" in found.facts or version.candidate not in found.outputs.values():
            raise LineageError(f"run {first.run}, which registered them first, has no record that it trained them")
        return found
    return None


def _descendants(x: Examination, version: Registered) -> tuple[Use, ...]:
    """Versions trained from these weights, and versions that were judged against them."""
    found: list[Use] = []
    for other in x.versions:
        hows = ["trained from it"] if x.base(other) == version.candidate else []
        hows += ["judged against it"] if x.registration(other).verdict.incumbent == version.candidate else []
        found += [use(x, other, " and ".join(hows))] if hows else []
    return tuple(found)
