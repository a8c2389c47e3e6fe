"""One audit under way: what it looks into, each record and piece of evidence read and checked once, what it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from securesystemslib.signer import Key

from lineage.audit.report import Data, Finding, Part, Standing
from lineage.audit.sources import History, MissingError, Sources, Store
from lineage.digests import LineageError, digest_path
from lineage.entries import Registered
from lineage.records import StepRecord
from lineage.signing import Role

PARTS: dict[str, Part] = {"validated": "data", "scores": "evaluation", "verdict": "verdict", "model.sig": "weights"}
"""What a piece of evidence is about; the rest is about the version."""


class Examination:
    """What the ledger says, what lies in the stores, and what was found about both."""

    def __init__(self, sources: Sources, scratch: Path) -> None:
        self.sources = sources
        self.history = History(sources.entries)
        self.state = self.history.state
        self.store = Store(sources, scratch)
        self.findings: dict[str, Finding] = {}
        self.images: dict[str, bytes] = {}
        self.proven = ""
        self.data: dict[str, Data] = {}
        """Run -> what it trained on, as `lineage.audit.pictures` keeps it."""
        self._records: dict[tuple[str, str], StepRecord | None] = {}
        self._evidence: dict[tuple[str, str], Path | None] = {}

    def note(self, part: Part, standing: Standing, subject: str, reason: str) -> None:
        """Keep a finding; what was found wrong with a subject before stays."""
        known = self.findings.get(subject)
        if known is None or known.standing in ("holds", "not proven"):
            self.findings[subject] = Finding(part=part, standing=standing, subject=subject, reason=reason)

    @contextmanager
    def checking(self, part: Part, subject: str, good: str) -> Iterator[None]:
        """Keep how the block ended as a finding."""
        try:
            yield
        except MissingError as error:
            self.note(part, "missing", subject, str(error))
        except FileNotFoundError as error:
            self.note(part, "missing", subject, f"nothing is at {error.filename or error}")
        except LineageError as error:
            self.note(part, "does not hold", subject, str(error))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            # Whatever tampered evidence leads its reader to.
            self.note(part, "does not hold", subject, f"it cannot be read: {type(error).__name__}: {error}")
        else:
            self.note(part, "holds", subject, good)

    def keys_of(self, role: Role) -> list[Key]:
        """Keys of a role, past ones included, that were never distrusted as a whole."""
        return [k.key for k in self.state.keys.values() if k.role == role and k.distrusted != k.since]

    def record(self, run: str, step: str) -> StepRecord | None:
        """The record that the ledger names; None where there is none that holds."""
        if (run, step) not in self._records:
            self._records[run, step] = self._checked_record(run, step)
        return self._records[run, step]

    def _checked_record(self, run: str, step: str) -> StepRecord | None:
        digest, subject = self.state.records.get((run, step)), f"record {run}/{step}.json"
        if digest is None:
            self.note("records", "missing", subject, f"the ledger names no record of step {step} of this run")
            return None
        with self.checking("records", subject, "it is the one that the ledger names"):
            if not self.sources.records:
                raise MissingError("no folder of records was given")
            filesystem, root = fsspec.url_to_fs(self.sources.records)
            return _read_record(filesystem.cat_file(f"{root}/{run}/{step}.json"), digest)
        version = next((v for v in self.history.versions if v.run == run and "records" in v.evidence), None)
        try:
            copy = self.store.evidence(version, f"records/{step}.json") if version else None
            return _read_record(copy.read_bytes(), digest) if copy else None
        except (LineageError, OSError, ValueError):
            return None

    def records(self, run: str) -> dict[str, StepRecord]:
        """All records of a run, in the order in which the steps began; what the ledger does not name is found too."""
        steps = [step for name, step in self.state.records if name == run]
        found = [record for step in steps if (record := self.record(run, step))]
        filesystem, root = fsspec.url_to_fs(self.sources.records)
        for path in filesystem.glob(f"{root}/{run}/*.json") if self.sources.records else ():
            step = str(path).rsplit("/", 1)[-1].removesuffix(".json")
            if step not in steps:
                reason = "it lies in the folder, and the ledger does not name it"
                self.note("records", "does not hold", f"record {run}/{step}.json", reason)
        return {record.step: record for record in sorted(found, key=lambda record: record.started)}

    def evidence(self, version: Registered, name: str) -> Path | None:
        """What lies beside the weights under ``name``, checked against the ledger; None where it is not there."""
        key = version.run, name
        if key not in self._evidence:
            self._evidence[key] = None
            with self.checking(PARTS.get(name, "version"), beside(version, name), "it is what the ledger names"):
                place = self._evidence[key] = self.store.evidence(version, name)
                actual, expected = digest_path(place), version.evidence.get(name)
                if actual != expected:
                    what = "one of its files was changed, added or removed" if place.is_dir() else "it was changed"
                    raise LineageError(f"{what}: digest {actual}, the ledger says {expected}")
        return self._evidence[key]

    def file(self, version: Registered, name: str, folder: str = "") -> Path:
        """A file of the evidence, or in one of its folders.

        Raises:
            MissingError: it is not there.
        """
        place = self.evidence(version, folder or name)
        path = place / name if place and folder else place
        if path is None or not path.is_file():
            raise MissingError(f"{folder}{'/' if folder else ''}{name} is not in the artifact store")
        return path

    def base(self, version: Registered) -> str:
        """Digest of the model that training began from; empty where no record holds that says so."""
        record = self.record(version.run, "encode-features")
        return record.inputs.get("base_model", "") if record else ""

    def ancestors(self, version: Registered) -> list[Registered]:
        """The versions that a version was trained from, nearest first."""
        found: list[Registered] = []
        following: Registered | None = version
        while following:
            entry, _ = self.history.registered[following.model, following.version]
            following = self.history.version_with(self.base(following), entry.index)
            found += [following] if following else []
        return found


def beside(version: Registered, name: str) -> str:
    """How findings call a piece of evidence."""
    return f"evidence/{name} of version {version.version}"


def expect(actual: str, expected: str, who: str) -> None:
    """Raise unless two sources of evidence say the same.

    Raises:
        LineageError: they do not.
    """
    if actual != expected:
        raise LineageError(f"it says {actual}; {who} says {expected or 'nothing'}")


def _read_record(content: bytes, digest: str) -> StepRecord:
    record = StepRecord.model_validate_json(content)
    if record.digest() != digest:
        raise LineageError(f"it was changed: digest {record.digest()}, the ledger says {digest}")
    return record
