"""Validation: from a snapshot to the rows that may be trained on, with the reason for every row that may not.

>>> validate(settings, Path("/runs/1/snapshot"), Path("/runs/1/validated"))
Validated(digest='sha256:…', rows=2000, accepted=1998, quarantined=2)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.validate_data import quarantine
from components.validate_data.errors import DataValidationError
from components.validate_data.facts import read_manifest, write_facts
from components.validate_data.quarantine import Finding, failures, find_rows
from components.validate_data.report import write_report
from components.validate_data.settings import ValidationSettings
from components.validate_data.suite import Outcome, build_suite, read_suite, run_suite
from lineage.digests import digest_file, manifest_digest


@dataclass(frozen=True)
class Validated:
    """What validation accepted; ``accepted + quarantined == rows``."""

    digest: str
    """Of the accepted rows without their ``uri``; the snapshot's own where all are accepted."""
    rows: int
    accepted: int
    quarantined: int


def validate(settings: ValidationSettings, snapshot: Path, target: Path) -> Validated:
    """Write the validated artifact to ``target``.

    Of refused data, facts, quarantine, report and summary are written all the same, but no manifest.

    Raises:
        DataValidationError: the suite cannot be run, an image changed since the snapshot, a critical
            expectation does not hold, or too many rows are quarantined.
    """
    suite = build_suite(read_suite(Path(settings.suite)))
    manifest = read_manifest(snapshot)
    facts = measure(manifest, settings.max_pixels)
    outcomes = run_suite(suite, facts)
    findings = find_rows(outcomes, facts)
    set_aside = {finding.row for finding in findings}
    accepted = manifest.filter(pa.array([row not in set_aside for row in range(len(manifest))]))
    refused = failures(outcomes, len(set_aside), len(manifest), settings.max_quarantined_share)
    result = Validated(manifest_digest(accepted.to_pylist()), len(manifest), len(accepted), len(set_aside))

    with _whole(target) as folder:
        pq.write_table(facts, folder / "facts.parquet")
        pq.write_table(_table(findings), folder / "quarantine.parquet")
        if not refused:
            pq.write_table(accepted, folder / "manifest.parquet")
        _write_summary(
            folder / "summary.json", settings, manifest_digest(manifest.to_pylist()), result, outcomes, refused
        )
        write_report(folder / "report.html", result, outcomes, findings, refused, manifest, facts)
    if refused:
        raise DataValidationError(f"the data is refused: {'; '.join(refused)}; see {target / 'report.html'}")
    return result


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``target`` only once it is full."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def _table(findings: Sequence[Finding]) -> pa.Table:
    return pa.Table.from_pylist([asdict(finding) for finding in findings], schema=quarantine.SCHEMA)


def _write_summary(
    path: Path,
    settings: ValidationSettings,
    snapshot: str,
    result: Validated,
    outcomes: Sequence[Outcome],
    refused: Sequence[str],
) -> None:
    summary = {
        "status": "refused" if refused else "accepted",
        "refused": list(refused),
        **asdict(result),
        "snapshot": snapshot,
        "suite": digest_file(Path(settings.suite)),
        "settings": settings.model_dump(mode="json"),
        "expectations": [
            {
                "expectation": outcome.name,
                "description": outcome.description,
                "severity": outcome.severity,
                "holds": outcome.holds,
                "observed": outcome.observed,
                "failing_rows": None if outcome.rows is None else len(outcome.rows),
                "error": outcome.error,
            }
            for outcome in outcomes
        ],
    }
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
