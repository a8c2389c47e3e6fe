"""Putting an audit together: find what was asked about, check what it rests on, gather the answers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lineage.audit import checks, pictures
from lineage.audit.examination import Examination
from lineage.audit.report import Base, Data, Ledger, Link, Move, Report, Use, Version
from lineage.audit.resolve import Target, UnknownError, resolve, use
from lineage.audit.sources import Sources
from lineage.digests import LineageError
from lineage.entries import Completed, Registered
from lineage.records import StepRecord

SIGHTS = {"grid": ("scores", "grid.png"), "pareto": ("verdict", "pareto.png")}
"""Pictures to show, and the evidence they lie in."""


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
            if not x.history.trouble:
                raise
            target = Target("unknown", f"{error}; it may be in the part of the ledger that does not hold")
        records = x.records(target.run) if target.run else {}
        version = _version(x, target.version, records) if target.version else None
        if records:
            checks.check_steps(x, target.run, records, target.version)
        return _report(x, what, target, records, version)


def _report(
    x: Examination, what: str, target: Target, records: dict[str, StepRecord], version: Version | None
) -> Report:
    ended = {k.key.keyid: f" until entry {k.until}" for k in x.state.keys.values() if k.until is not None}
    return Report(
        what=what,
        kind=target.kind,
        found=target.found,
        ledger=Ledger(
            name=x.state.ledger,
            size=x.state.size,
            head=x.state.head,
            root=x.sources.root_id,
            proven=x.proven,
            keys={k.key.keyid: k.role + ended.get(k.key.keyid, "") for k in x.state.keys.values()},
        ),
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
    for step in checks.STEPS:
        x.record(version.run, step)
    checks.check_evidence(x, version)
    predicate = checks.verdict(x, version)
    seeds = checks.check_scores(x, version, predicate)
    data = tuple(_checked_data(x, one, one is version) for one in (version, *x.ancestors(version)))
    checks.check_weights(x, version)
    checks.check_provenance(x, version)
    checks.check_registry(x, version)
    _keep_sights(x, version)
    entry, _ = x.history.registered[version.model, version.version]
    judging, judged = x.history.judged[version.verdict]
    digest = x.base(version)
    return Version(
        model=version.model,
        number=version.version,
        standing=x.history.standing(version),
        run=version.run,
        registered=entry.time,
        candidate=version.candidate,
        decision=judged.decision,
        incumbent=judged.incumbent,
        incumbent_name=_name(x, judged.incumbent, entry.index),
        verdict=version.verdict,
        judged=judging.time,
        gate_key=judging.key,
        predicate=predicate,
        seeds=seeds,
        evidence=version.evidence,
        trained_by=_trained_by(x, version, records),
        base=Base(digest=digest, name=_name(x, digest, entry.index)) if digest else None,
        data=data,
        chain=_chain(x, version),
        moves=_moves(x, version),
        descendants=_descendants(x, version),
    )


def _checked_data(x: Examination, version: Registered, own: bool) -> Data:
    data = pictures.data(x, version)
    pictures.check_pictures(x, data, show=own)
    return data


def _name(x: Examination, digest: str, before: int) -> str:
    version = x.history.version_with(digest, before)
    return f"version {version.version} of {version.model}" if version else "the base model"


def _trained_by(x: Examination, version: Registered, records: dict[str, StepRecord]) -> StepRecord | None:
    """The step that trained these weights; a run that judged known ones anew says so in its record."""
    own = records.get("fine-tune")
    if own is None or "reused" not in own.facts:
        return own
    subject = f"who trained the weights of version {version.version}"
    with x.checking("records", subject, "a record of an earlier run says that it gave them"):
        first = x.history.of_weights[version.candidate][0][1]
        found = x.record(first.run, "fine-tune")
        if found is None or "reused" in found.facts or version.candidate not in found.outputs.values():
            raise LineageError(f"run {first.run}, which registered them first, has no record that it trained them")
        return found
    return None


def _chain(x: Examination, version: Registered) -> tuple[Link, ...]:
    """The version, what it was judged against, what that was judged against, down to the base model."""
    chain: list[Link] = []
    following: Registered | None = version
    while following:
        entry, _ = x.history.registered[following.model, following.version]
        judging, judged = x.history.judged[following.verdict]
        if following is not version:
            checks.verdict(x, following)
        chain.append(
            Link(
                version=following.version,
                candidate=following.candidate,
                decision=judged.decision,
                incumbent=judged.incumbent,
                time=judging.time,
            )
        )
        following = x.history.version_with(judged.incumbent, entry.index)
    return tuple(chain)


def _moves(x: Examination, version: Registered) -> tuple[Move, ...]:
    """The champion's moves to this version and away from it."""
    moves = []
    for entry, move in x.history.moves:
        replaced = "" if move.action == "withdraw" and move.version != move.previous_version else move.previous_version
        if move.model != version.model or version.version not in (move.version, replaced):
            continue
        ending, body = x.history.ended.get(move.move, (None, None))
        ended = "not finished" if ending is None else f"completed {ending.time}"
        if body is not None and not isinstance(body, Completed):
            ended = f"given up: {body.reason}"
        if ending is None:
            subject = f"ledger entry {entry.index} ({move.action} of version {move.version})"
            x.note("moves", "missing", subject, "it was never completed nor given up; run: triptych reconcile")
        moves.append(
            Move(
                entry=entry.index,
                time=entry.time,
                action=move.action,
                version=move.version,
                replaced=replaced,
                user=move.user,
                reason=move.reason,
                ended=ended,
            )
        )
    return tuple(moves)


def _descendants(x: Examination, version: Registered) -> tuple[Use, ...]:
    """Versions trained from these weights, and versions that were judged against them."""
    found: list[Use] = []
    for other in x.history.versions:
        hows = ["trained from it"] if x.base(other) == version.candidate else []
        hows += ["judged against it"] if x.state.verdicts[other.verdict].incumbent == version.candidate else []
        found += [use(x, other, " and ".join(hows))] if hows else []
    return tuple(found)


def _keep_sights(x: Examination, version: Registered) -> None:
    """Keep the sample grid and the plot of the axes, where the evidence they lie in holds."""
    for name, (folder, file) in SIGHTS.items():
        finding = x.findings.get(f"evidence/{folder} of version {version.version}")
        place = x.evidence(version, folder)
        if place and (place / file).is_file() and finding and finding.standing == "holds":
            x.images[name] = (place / file).read_bytes()
