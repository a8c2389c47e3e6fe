"""The report as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lineage.audit.report import Data, Picture, Report, Version
from lineage.records import StepRecord

FEW = 10
"""Training images that the text lists; JSON has them all."""
ORDER = ("does not hold", "missing", "not proven", "holds")


def write_text(report: Report) -> str:
    """The whole report for a terminal; nothing in it can steer one."""
    return "".join(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) + "\n" for line in _lines(report)
    )


def summary(report: Report) -> str:
    """Whether it holds, in one sentence."""
    if report.holds:
        told = f"Everything that was checked holds ({report.count('holds')} checks)"
    else:
        told = f"NOT everything holds: {report.count('does not hold')} of {len(report.findings)} checks do not hold"
        told += f", {report.count('missing')} find something missing"
    open_ends = report.count("not proven")
    return told + (f"; {open_ends} could not be proven" if open_ends else "")


def rights(pictures: tuple[Picture, ...], name: str) -> str:
    """What pictures say of their ``license``, ``consent`` or ``source``, most frequent first."""
    found = Counter(getattr(picture, name) or "not stated" for picture in pictures).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in found[:FEW])
    return shown + (f" and {len(found) - FEW} more" if found[FEW:] else "")


def seeds(records: dict[str, StepRecord]) -> dict[str, int]:
    """Step -> the seed that it was given."""
    # KFP hands whole numbers on as floats.
    return {step: int(record.parameters["seed"]) for step, record in records.items() if "seed" in record.parameters}


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.what}: {report.found}"
    yield summary(report)
    for name, value in report.claims.items():
        yield f"  {name:<14} {value}"
    for use in report.uses:
        yield f"  version {use.version} of {use.model} ({use.standing}): {use.how}"
    if report.version:
        yield from _version(report.version)
    if report.records:
        yield from _steps(report)
    yield from ("", f"LEDGER {report.ledger.name}", f"  {report.ledger.proven}")
    yield from (f"  key {key[:12]}  {role}" for key, role in report.ledger.keys.items())
    yield from ("", "CHECKED")
    for standing in ORDER:
        for finding in report.findings:
            if finding.standing == standing:
                yield f"  {standing:<13}  {finding.subject}: {finding.reason}"


def _version(version: Version) -> Iterator[str]:
    yield from ("", f"VERSION {version.number} of {version.model}: {version.standing}")
    yield f"  weights     {version.candidate}, registered {version.registered} by run {version.run}"
    if version.base:
        yield f"  trained from {version.base.name} ({version.base.digest})"
    if version.trained_by and version.trained_by.run != version.run:
        yield f"  trained in  run {version.trained_by.run}; this run judged known weights anew"
    for data in version.data:
        yield from _data(data, data.run == version.run)
    yield from _gate(version)
    yield from ("", "CHAMPION")
    for move in version.moves:
        replaced = f", in place of version {move.replaced}" if move.replaced else ""
        reason = f": {move.reason}" if move.reason else ""
        yield f"  {move.time}  {move.action} of version {move.version}{replaced} by {move.user}{reason}"
        yield f"    ledger entry {move.entry}, {move.ended}"
    if not version.moves:
        yield "  it never was"
    yield from ("", "CAME OF IT")
    yield from (f"  version {use.version} ({use.standing}): {use.how}" for use in version.descendants)
    if not version.descendants:
        yield "  nothing"


def _data(data: Data, own: bool) -> Iterator[str]:
    yield from ("", "TRAINED ON" if own else f"BEFORE THAT, AS VERSION {data.version}, TRAINED ON")
    yield f"  snapshot {data.snapshot}, accepted rows {data.accepted}"
    if data.pictures is None:
        yield "  unknown: the manifest is missing or does not hold"
    else:
        yield f"  {len(data.pictures)} images"
        yield from (f"    {name}: {rights(data.pictures, name)}" for name in ("license", "consent", "source"))
        yield from (
            f"    {picture.file_name}  {picture.sha256[:19]}…  {picture.text}" for picture in data.pictures[:FEW]
        )
        if data.pictures[FEW:]:
            yield f"    and {len(data.pictures) - FEW} more; --format json lists all"
    if data.refused is None:
        yield "  refused: unknown, the quarantine is missing or does not hold"
        return
    yield f"  {len(data.refused)} refused"
    for picture in data.refused[:FEW]:
        yield f"    {picture.file_name}  {picture.sha256[:19]}…  {'; '.join(picture.refused)}"
    if data.refused[FEW:]:
        yield f"    and {len(data.refused) - FEW} more; --format json lists all"


def _gate(version: Version) -> Iterator[str]:
    yield from ("", f"GATE: {version.decision}")
    yield f"  against {version.incumbent_name} ({version.incumbent})"
    yield f"  verdict {version.verdict}, signed {version.judged} by key {version.gate_key[:12]}"
    if version.predicate is None:
        yield "  what it measured is unknown: the verdict is missing or does not hold"
    else:
        evaluation = version.predicate["evaluation"]
        pinned = evaluation["evaluation_set"]
        yield f"  on evaluation set {pinned['name']} {pinned['version']} ({pinned['digest']})"
        yield from (f"  scorer {s['name']} ({s['axis']}): {s['digest']}" for s in evaluation["scorers"])
        distinct = len({seed for seeds in version.seeds.values() for seed in seeds})
        drawn = f"{len(version.seeds)} prompts, {distinct} seeds; --format json lists each prompt's"
        yield f"  {drawn if version.seeds else 'no picture was scored'}"
        yield from (f"  {reason}" for reason in version.predicate["reasons"])
        yield from map(_figure, version.predicate["figures"])
        if anchor := version.predicate.get("anchor"):
            yield "  against the last version that a person approved:"
            yield from map(_figure, anchor)
    yield "  the chain of judgements:"
    for link in version.chain:
        yield f"    version {link.version} ({link.decision}, {link.time}) against {link.incumbent[:19]}…"


def _figure(f: Mapping[str, Any]) -> str:
    return (
        f"    {f['name']:<20} {f['incumbent']:.3f} -> {f['candidate']:.3f}  {f['difference']:+.3f} "
        f"({f['lower']:+.3f} to {f['upper']:+.3f}), margin {f['margin']:g}"
    )


def _steps(report: Report) -> Iterator[str]:
    yield from ("", f"RUN {report.run} ({report.outcome})")
    for step, record in report.records.items():
        where = f"image {record.image}" if record.image else "a process"
        yield f"  {step:<16} {record.status:<9} {record.started} to {record.ended}, {record.user}, {where}"
        yield from (f"    error {record.error}" for _ in range(bool(record.error)))
    for name in ("commit", "code", "packages"):
        found = sorted({getattr(record, name) or "unknown" for record in report.records.values()})
        yield f"  {name:<9} {', '.join(found)}"
    yield from (f"  seed of {step}: {seed}" for step, seed in seeds(report.records).items())
    yield "  configuration: every step's parameters, with --format json"
