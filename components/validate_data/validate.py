"""Validation: from a snapshot to the rows that may be trained on, with the reason for every row that may not.

>>> validate(settings, Path("/runs/1/snapshot"), Path("/runs/1/validated"))
Validated(digest='sha256:…', rows=2000, accepted=1998, quarantined=2)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.validate_data.errors import DataValidationError
from components.validate_data.facts import measure_facts, read_manifest
from components.validate_data.quarantine import SCHEMA, failures, find_rows
from components.validate_data.report import write_report
from components.validate_data.settings import ValidationSettings
from components.validate_data.suite import Outcome, build_suite, read_suite, run_suite
from lineage.digests import digest_file, manifest_digest
from lineage.files import whole_folder, write_whole
from lineage.pictures import ROWS

REFERENCE = "validated-facts.parquet"
"""In the folder that outlives runs: facts of the data accepted last, against which drift is measured."""


@dataclass(frozen=True)
class Validated:
    """What validation accepted; ``accepted + quarantined == rows``."""

    digest: str
    """Of the accepted rows without their ``uri``; the snapshot's own where all are accepted."""
    rows: int
    accepted: int
    quarantined: int
    refused_before: int
    """Rows that the snapshot refused already; not among ``rows``."""


def validate(settings: ValidationSettings, snapshot: Path, target: Path, state: Path | None = None) -> Validated:
    """Write the validated artifact to ``target``.

    Of refused data, facts, quarantine, report and summary are written all the same, but no manifest.

    Args:
        state: a folder that outlives runs; None: there is no earlier data to compare with, and none is kept.

    Raises:
        DataValidationError: the suite cannot be run, an image changed since the snapshot, a critical
            expectation does not hold, or too many rows are quarantined.
    """
    reference = state / REFERENCE if state else None
    suite = build_suite(read_suite(Path(settings.suite)), settings, reference)
    manifest = read_manifest(snapshot)
    with whole_folder(target) as folder:
        facts = measure_facts(manifest, settings)
        pq.write_table(facts, folder / "facts.parquet", row_group_size=ROWS)
        outcomes, page = run_suite(suite, facts)
        findings = find_rows(outcomes, facts)
        set_aside = {finding.row for finding in findings}
        accepted = manifest.filter(pa.array([row not in set_aside for row in range(len(manifest))]))
        before = pq.read_table(snapshot / "refused.parquet").to_pylist()
        digest = manifest_digest(accepted.to_pylist())
        result = Validated(digest, len(manifest), len(accepted), len(set_aside), len(before))
        refused = failures(outcomes, len(set_aside), len(manifest), settings.max_quarantined_share)
        quarantine = pa.Table.from_pylist([finding._asdict() for finding in findings], SCHEMA)
        pq.write_table(quarantine, folder / "quarantine.parquet")
        if not refused:
            pq.write_table(accepted, folder / "manifest.parquet")
        pinned = manifest_digest(manifest.to_pylist())
        summary = _summary(settings, pinned, result, outcomes, refused)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
        (folder / "expectations.html").write_text(page, encoding="utf-8")
        write_report(folder / "report.html", result, outcomes, findings, refused, manifest, facts, before)
    if refused:
        raise DataValidationError(f"the data is refused: {'; '.join(refused)}; see {target / 'report.html'}")
    if reference is not None:
        write_whole(reference, (target / "facts.parquet").read_bytes())
    return result


def _summary(
    settings: ValidationSettings, snapshot: str, result: Validated, outcomes: Sequence[Outcome], refused: list[str]
) -> dict[str, Any]:
    return {
        "status": "refused" if refused else "accepted",
        "refused": refused,
        **asdict(result),
        "snapshot": snapshot,
        "suite": digest_file(Path(settings.suite)),
        "settings": settings.model_dump(mode="json"),
        "expectations": [
            {
                "expectation": one.name,
                "failing_rows": None if one.rows is None else len(one.rows),
                **{key: getattr(one, key) for key in ("description", "severity", "holds", "observed", "error")},
            }
            for one in outcomes
        ],
    }
