"""Who says what about which thing, and how findings call things."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lineage.digests import LineageError
from lineage.entries import Registered
from lineage.places import GoneError, UnreachableError
from lineage.records import StepRecord
from lineage.state import State
from lineage.statements import VERDICT_FILE
from lineage.witness import UnprovenError
from pipelines.audit.report import LEDGER, Part, Standing

PARTS: dict[str, Part] = {"validated": "data", "scores": "evaluation", "verdict": "verdict", "model.sig": "weights"}
"""What a piece of evidence is about; the rest is about the version."""
VERDICT_PATH = f"verdict/{VERDICT_FILE}"


class Claim(NamedTuple):
    """``by`` says that ``subject`` has ``value``, mostly a digest."""

    subject: str
    value: str
    by: str
    part: Part
    kind: str = ""
    """What an answer about ``value`` calls it: weights, record, evidence, ...; empty: nobody asks about it."""
    how: str = ""
    """What the version or run below has to do with it."""
    version: Registered | None = None
    run: str = ""


def judge(error: Exception) -> tuple[Standing, str]:
    """What it shows about evidence that reading it ended so."""
    if isinstance(error, GoneError | UnreachableError):
        return "missing", str(error)
    if isinstance(error, LineageError):
        return "not proven" if isinstance(error, UnprovenError) else "does not hold", str(error)
    # Whatever hostile evidence leads the library that reads it to, MemoryError and RecursionError among it.
    return "does not hold", f"it cannot be read: {type(error).__name__}: {error}"[:1000]


def claims_of_ledger(state: State, versions: Iterable[Registered]) -> Iterator[Claim]:
    """What the ledger says of versions, verdicts and records."""
    for version in versions:
        run = version.run
        said: list[tuple[str, str, Part, str, str]] = [
            (f"the weights of {version.name}", version.candidate, "weights", "weights", "has these weights"),
            (f"the model folder of {version.name}", version.folder, "weights", "folder", "is this model folder"),
            (beside(version, VERDICT_PATH), version.verdict, "verdict", "", ""),
            (f"candidate in run {run}", version.candidate, "verdict", "", ""),
        ]
        for name, digest in version.evidence.items():
            part = PARTS.get(name, "version")
            said += [(beside(version, name), digest, part, "evidence", f"has it as evidence {name!r}")]
            said += [(f"{name} in run {run}", digest, "records", "", "")]
        for subject, value, part, kind, how in said:
            yield Claim(subject, value, LEDGER, part, kind, how, version, run)
    for digest, judged in state.verdicts.items():
        subject = f"the verdict of run {judged.run}"
        yield Claim(subject, digest, LEDGER, "verdict", "verdict", "the verdict of", run=judged.run)
    for run, steps in state.records.items():
        for step, digest in steps.items():
            how = f"the record of step {step} in"
            yield Claim(f"record {run}/{step}.json", digest, LEDGER, "records", "record", how, run=run)


def beside(version: Registered, name: str) -> str:
    """How findings call a piece of evidence."""
    return f"evidence/{name.rstrip('/')} of {version.name}"


def claims_of_record(record: StepRecord, version: Registered | None) -> Iterator[Claim]:
    """What a step says that it took, gave and ran with."""
    by, run = f"step {record.step}", record.run
    facts = {"evaluation set": (record.facts.get("evaluation_set") or {}).get("digest", "")}
    facts |= {f"scorer {scorer['name']}": scorer["digest"] for scorer in record.facts.get("scorers", [])}
    own = {"code": record.code, "packages": record.packages, "image": record.image or "", **facts}
    passed = [*record.inputs.items(), *record.outputs.items()]
    for (name, digest), of in (*((one, "") for one in passed), *((one, f" of {by}") for one in own.items())):
        how = f"{by} names it as {name}"
        yield Claim(f"{name}{of} in run {run}", str(digest), by, "records", "digest", how, version, run)
