"""The images that a version was trained on, and those that were refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from lineage.artifacts import read_file, regular
from lineage.digests import digest_bytes, manifest_digest
from lineage.entries import Registered
from lineage.pictures import PARQUET, manifest_rows, read_bytes, trained_on
from lineage.places import ChangedError, GoneError, UnreachableError
from lineage.witness import UnprovenError
from pipelines.audit.checks import MOST_TABLE, MOST_UNPACKED, NAMED
from pipelines.audit.examination import Claim, Examination, beside, judge, once
from pipelines.audit.report import Data, Finding, Picture, Standing

SHOWN = 24
"""Training images kept to be shown."""
MOST_PICTURE = 2**28
"""Bytes of a picture's file."""
HELD_OUT = "held out"
COLUMNS = ("file_name", "sha256", "bytes", "text", "license", "consent", "source", "split")


@once
def data_of(x: Examination, version: Registered) -> Data:
    """What a version's run trained on and what it refused, its digests checked."""
    run, record, accepted, refused = version.run, x.record(version.run, "validate-data"), None, None
    stated = {**record.outputs, **record.inputs} if record else {}

    def rows(name: str, *columns: str) -> Iterator[dict[str, Any]]:
        content = x.content(version, f"validated/{name}.parquet", MOST_TABLE)
        return manifest_rows(BytesIO(content), columns or None, MOST_UNPACKED)

    with x.checking("data", beside(version, "validated/manifest.parquet")):
        found = list(rows("manifest"))
        digest = manifest_digest(found)
        x.claim(Claim(f"accepted in run {run}", digest, "the manifest", "data"))
        accepted = found if stated.get("accepted") == digest else None
    with x.checking("data", beside(version, "validated/quarantine.parquet")):
        facts, why = list(rows("facts", "row", *COLUMNS)), dict[int, list[str]]()
        for row in rows("quarantine", "row", "reason"):
            why.setdefault(row["row"], []).append(row["reason"])
        if accepted is None:
            raise UnprovenError("the manifest of the accepted rows does not hold: the snapshot cannot be put together")
        rest = iter(accepted)
        whole = [{c: row[c] for c in COLUMNS} if row["row"] in why else next(rest, {}) for row in facts]
        digest = manifest_digest([*whole, *rest])
        x.claim(Claim(f"snapshot in run {run}", digest, "accepted and refused rows together", "data"))
        if stated.get("snapshot") == digest:
            held_out = [(row, (f"{HELD_OUT}: its split is {row['split']}",)) for row in accepted if not trained_on(row)]
            set_aside = [*((facts[row], tuple(reasons)) for row, reasons in why.items()), *held_out]
            refused = tuple(_picture(row, reasons) for row, reasons in set_aside)
    pictures = None if accepted is None else tuple(_picture(row) for row in accepted if trained_on(row))
    named = {name: stated.get(name, "") for name in ("snapshot", "accepted")}
    return Data(version=version.version, run=run, **named, pictures=pictures, refused=refused)


def check_pictures(x: Examination, data: Data, show: bool) -> None:
    """The images lie where they were pinned, and are the ones that were; some of them are kept to be shown."""
    pictures, cells, wrong = data.pictures or (), _Cells(), list[Finding]()
    step = max(1, -(-len(pictures) // SHOWN))
    for number, picture in enumerate(pictures):
        try:
            content = _read_picture(picture.uri or "", cells, x.sources.remote)
            if (found := digest_bytes(content)) != picture.sha256:
                raise ChangedError(f"the manifest says {picture.sha256}; what lies at {picture.uri} says {found}")
        except Exception as error:
            subject, (standing, reason) = f"training image {picture.file_name} of run {data.run}", judge(error)
            wrong.append(Finding(part="data", standing=standing, subject=subject, reason=reason))
        else:
            if show and number % step == 0:
                x.images[f"training/{picture.file_name}"] = content
    for finding in wrong[:NAMED]:
        x.note(finding.part, finding.standing, finding.subject, finding.reason)
    if wrong[NAMED:]:
        worst = min((finding.standing for finding in wrong), key=get_args(Standing).index)
        reason = f"as the {NAMED} named: changed, gone or not read"
        x.note("data", worst, f"{len(wrong) - NAMED} more training images of run {data.run}", reason)
    if pictures and not wrong:
        good = "each one lies where it was pinned, unchanged"
        x.note("data", "holds", f"the {len(pictures)} training images of run {data.run}", good)


def _read_picture(uri: str, cells: _Cells, remote: bool) -> bytes:
    """The bytes of a picture; from other machines only where that was asked for."""
    scheme, _, place = uri.partition("://")
    try:
        if scheme == "file":
            return read_file(Path(place), MOST_PICTURE)
        if scheme == f"{PARQUET}file":
            return cells.read(place)
        if not remote:
            raise UnprovenError(f"it lies at {uri}; nothing is fetched unless asked for")
        return read_bytes(uri)
    except GoneError as error:
        raise GoneError(f"{uri} is not there any more; its digest and rights stand in the manifest") from error
    except UnreachableError as error:
        raise UnprovenError(f"it lies at {uri}, which is not read: {error}") from error


class _Cells:
    """Pictures in parquet files, one of them in memory; what is asked for in order is read in one pass."""

    def __init__(self) -> None:
        self.at, self.next = "", 0
        self.cells: Iterator[Any] = iter(())

    def read(self, place: str) -> bytes:
        """The picture at ``<file>#<column>/<row>``."""
        column, _, row = place.rpartition("/")
        if column != self.at or int(row) < self.next:
            self.at, self.next, self.cells = column, 0, self._all(*column.rsplit("#", 1))
        value = next(islice(self.cells, int(row) - self.next, None))
        self.next = int(row) + 1
        return bytes((value.get("bytes") if isinstance(value, dict) else value) or b"")

    @staticmethod
    def _all(file: str, column: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with regular(Path(file)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=1, columns=[column]):
                yield batch.column(0)[0].as_py()


def _picture(row: Mapping[str, Any], refused: tuple[str, ...] = ()) -> Picture:
    return Picture(**{name: row[name] for name in Picture.model_fields if name in row}, refused=refused)
