"""The images that a version was trained on, and those that were refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lineage.audit.examination import Examination, beside, expect
from lineage.audit.report import Data, Finding, Picture
from lineage.audit.sources import MissingError
from lineage.digests import LineageError, manifest_digest
from lineage.entries import Registered
from lineage.pictures import ChangedError, GoneError, PictureError, read_picture, trained_on

SHOWN = 24
"""Training images kept to be shown."""
NAMED = 20
"""Training images that are named one by one where they do not hold."""
HELD_OUT = "held out"
RIGHTS = ("license", "consent", "source")


def data(x: Examination, version: Registered) -> Data:
    """What a version's run trained on and what it refused, its digests checked."""
    if version.run not in x.data:
        x.data[version.run] = _read_data(x, version)
    return x.data[version.run]


def _read_data(x: Examination, version: Registered) -> Data:
    import pyarrow.parquet as pq

    record = x.record(version.run, "validate-data")
    snapshot = record.inputs.get("snapshot", "") if record else ""
    digest = record.outputs.get("validated", "") if record else ""
    accepted: list[dict[str, Any]] | None = None
    refused: tuple[Picture, ...] | None = None
    with x.checking("data", beside(version, "validated/manifest.parquet"), "its rows are those that were validated"):
        rows = pq.read_table(x.file(version, "manifest.parquet", "validated")).to_pylist()
        expect(manifest_digest(rows), digest, "step validate-data")
        accepted = rows
    with x.checking(
        "data", beside(version, "validated/quarantine.parquet"), "with the accepted rows it is the whole snapshot"
    ):
        facts = pq.read_table(x.file(version, "facts.parquet", "validated")).to_pylist()
        why: dict[int, list[str]] = {}
        for row in pq.read_table(x.file(version, "quarantine.parquet", "validated")).to_pylist():
            why.setdefault(row["row"], []).append(row["reason"])
        _check_whole(accepted, facts, set(why), snapshot)
        refused = tuple(_picture(facts[row], tuple(reasons)) for row, reasons in why.items())
    used = [row for row in accepted or () if trained_on(row)]
    held_out = [row for row in accepted or () if not trained_on(row)]
    not_used = tuple(_picture(row, (f"{HELD_OUT}: its split is {row['split']}",)) for row in held_out)
    return Data(
        version=version.version,
        run=version.run,
        snapshot=snapshot,
        accepted=digest,
        pictures=tuple(map(_picture, used)) if accepted is not None else None,
        refused=refused if refused is None else (*refused, *not_used),
    )


def check_pictures(x: Examination, data: Data, show: bool) -> None:
    """The images lie where they were pinned, and are the ones that were; some of them are kept to be shown."""
    pictures = data.pictures or ()
    step = max(1, -(-len(pictures) // SHOWN))
    wrong: list[Finding] = []
    for number, picture in enumerate(pictures):
        subject = f"training image {picture.file_name}"
        try:
            content = read_picture({"file_name": picture.file_name, "sha256": picture.sha256, "uri": picture.uri or ""})
        except GoneError:
            reason = f"{picture.uri} is not there any more; its digest and rights stand in the manifest"
            wrong.append(Finding(part="data", standing="missing", subject=subject, reason=reason))
        except ChangedError as error:
            wrong.append(Finding(part="data", standing="does not hold", subject=subject, reason=str(error)))
        except PictureError as error:
            reason = f"it lies at {picture.uri}, which is not read: {error}"
            wrong.append(Finding(part="data", standing="not proven", subject=subject, reason=reason))
        else:
            if show and number % step == 0:
                x.images[f"training/{picture.file_name}"] = content
    for finding in wrong[:NAMED]:
        x.findings[finding.subject] = finding
    if wrong[NAMED:]:
        worst = next((f.standing for f in wrong if f.standing == "does not hold"), wrong[-1].standing)
        reason = f"as the {NAMED} named: changed, gone or not read"
        x.note("data", worst, f"{len(wrong) - NAMED} more training images of run {data.run}", reason)
    if pictures and not wrong:
        good = "each one lies where it was pinned, unchanged"
        x.note("data", "holds", f"the {len(pictures)} training images of run {data.run}", good)


def _picture(row: Mapping[str, Any], refused: tuple[str, ...] = ()) -> Picture:
    named = ("file_name", "sha256", "text", *RIGHTS)
    return Picture(**{name: row[name] for name in named}, uri=row.get("uri"), refused=refused)


def _check_whole(
    accepted: list[dict[str, Any]] | None, facts: list[dict[str, Any]], set_aside: set[int], snapshot: str
) -> None:
    """Accepted and refused rows together are the snapshot."""
    if accepted is None:
        raise MissingError("the manifest of the accepted rows does not hold, so the snapshot cannot be put together")
    rest = iter(accepted)
    columns = ("file_name", "sha256", "bytes", "text", *RIGHTS, "split")
    rows = [{c: row[c] for c in columns} if row["row"] in set_aside else next(rest, {}) for row in facts]
    if next(rest, None) is not None or manifest_digest(rows) != snapshot:
        raise LineageError(
            f"accepted and refused rows together are not the snapshot {snapshot}: facts.parquet or "
            "quarantine.parquet was changed, or rights of a refused row were blank"
        )
