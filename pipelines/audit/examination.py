"""One audit under way: who claims what about which thing, each piece of evidence read once, and what was found.

    x.claim(Claim("evidence/README.md of version 2 of portraits", "sha256:…", LEDGER, "version"))
    x.claim(Claim("evidence/README.md of version 2 of portraits", "sha256:…", STORE, "version"))
    x.compare()  # where two disagree, something was changed

Nothing is parsed before its digest was found to be the one that somebody vouches for, and everything within bounds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from lineage.artifacts import Artifacts, Listed, digest_of, listing, read_file
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Entry, Judged, Moved, PolicySet, Registered, entry_digest
from lineage.places import ChangedError, GoneError, UnreachableError, reaching
from lineage.records import StepRecord
from lineage.registry import Registry, Version
from lineage.rules import extend, replay
from lineage.state import State
from lineage.statements import VERDICT_FILE
from lineage.witness import UnprovenError
from pipelines.audit.report import LEDGER, STORE, Finding, Part, Registration, Sources, Standing

MOST_TEXT = 16 * 2**20
"""Bytes of a document that is parsed."""
PARTS: dict[str, Part] = {"validated": "data", "scores": "evaluation", "verdict": "verdict", "model.sig": "weights"}
"""What a piece of evidence is about; the rest is about the version."""
VERDICT_PATH = f"verdict/{VERDICT_FILE}"
Method = TypeVar("Method", bound=Callable[..., Any])


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


def once(method: Method) -> Method:
    """Ask each question about an examination once; what it raised is raised again."""

    @wraps(method)
    def found(x: Examination, *asked: Any) -> Any:
        key = method.__name__, *((a.model, a.version) if isinstance(a, Registered) else a for a in asked)
        if key not in x.known:
            try:
                x.known[key] = method(x, *asked)
            except LineageError as error:
                x.known[key] = error
        if isinstance(x.known[key], LineageError):
            raise x.known[key]
        return x.known[key]

    return cast(Method, found)


class Examination:
    """What the ledger says, what lies in the stores, and what was found about both."""

    def __init__(self, sources: Sources, scratch: Path) -> None:
        self.sources = sources
        self.state, self.trouble = _replay(sources.entries)
        self.artifacts = Artifacts(sources.registry, sources.artifacts, scratch, sources.remote)
        self.subjects: dict[str, list[Claim]] = {}
        self.values: dict[str, list[Claim]] = {}
        self.findings: dict[str, Finding] = {}
        self.images: dict[str, bytes] = {}
        self.proven = ""
        self.known: dict[tuple[Any, ...], Any] = {}
        counted = [entry for entry in sources.entries[: self.state.size] if entry.index not in self.state.void]
        judged = {entry.body.verdict: entry for entry in reversed(counted) if isinstance(entry.body, Judged)}
        self.moves = [(entry, entry.body) for entry in counted if isinstance(entry.body, Moved)]
        self.policies = [(entry, entry.body) for entry in counted if isinstance(entry.body, PolicySet)]
        self.registered: dict[tuple[str, str], Registration] = {}
        """(Model, version) -> its registration, oldest first."""
        for entry in counted:
            if isinstance(body := entry.body, Registered) and (body.model, body.version) not in self.registered:
                made = Registration(registered=entry, judged=judged[body.verdict])
                self.registered[body.model, body.version] = made
        self.versions = [made.body for made in self.registered.values()]
        self.version_of = {body.run: body for body in self.versions}
        """Run -> the version that it registered."""
        self.claim(*claims_of_ledger(self.state, self.versions))

    def registration(self, version: Registered) -> Registration:
        """The entries that judged and registered a version."""
        return self.registered[version.model, version.version]

    def version_with(self, weights: str, before: Registered | None = None) -> Registered | None:
        """The last version with these weights, registered before another one."""
        found = None
        for body in self.versions:
            if body is before:
                break
            found = body if body.candidate == weights else found
        return found

    def standing(self, version: Registered) -> str:
        """What a version is now."""
        standing = self.state.standing(version.model, version.version)
        return f"candidate ({self.registration(version).verdict.decision})" if standing == "candidate" else standing

    def digest_at(self, index: int) -> str:
        """The digest of an entry."""
        return entry_digest(self.sources.entries[index])

    def note(self, part: Part, standing: Standing, subject: str, reason: str) -> None:
        """Keep a finding; what was found wrong with a subject before stays."""
        known = self.findings.get(subject)
        if known is None or known.standing in ("holds", "not proven"):
            subject, reason = (text.encode(errors="replace").decode() for text in (subject, reason))
            self.findings[subject] = Finding(part=part, standing=standing, subject=subject, reason=reason)

    @contextmanager
    def checking(self, part: Part, subject: str, good: str = "") -> Iterator[None]:
        """Keep how the block ended as a finding; without ``good`` only what is wrong."""
        try:
            yield
        except Exception as error:
            standing, reason = judge(error)
            self.note(part, standing, subject, reason)
        else:
            if good:
                self.note(part, "holds", subject, good)

    def claim(self, *claims: Claim) -> None:
        """Keep claims, by what they are about and by what they say."""
        for claim in claims:
            self.subjects.setdefault(claim.subject, []).append(claim)
            if claim.kind:
                self.values.setdefault(claim.value, []).append(claim)

    def agree(self, subject: str) -> bool:
        """Whether two or more say something about a subject, and all the same."""
        claims = self.subjects.get(subject, [])
        return len({claim.by for claim in claims}) > 1 and len({claim.value for claim in claims}) == 1

    def compare(self) -> None:
        """Keep what the claims about each subject come to."""
        for subject, claims in self.subjects.items():
            said: dict[str, dict[str, None]] = {}
            for claim in claims:
                said.setdefault(claim.value, {})[claim.by] = None
            by = {claim.by for claim in claims}
            told = [f"{' and '.join(who)} {'say' if len(who) > 1 else 'says'}" for who in said.values()]
            if subject.startswith(("evidence/", "weights/")) and STORE not in by and by != {LEDGER}:
                self.note(claims[0].part, "missing", subject, f"{told[0]} what it is; it is not in the artifact store")
            elif len(said) > 1:
                reason = "; ".join(f"{who} {value or 'nothing'}" for who, value in zip(told, said, strict=True))
                self.note(claims[0].part, "does not hold", subject, reason)
            elif len(by) > 1:
                self.note(claims[0].part, "holds", subject, f"{told[0]} the same")

    @once
    def registry(self, model: str) -> Registry:
        """The registry of a model, or `GoneError`, `UnreachableError`."""
        if not self.sources.registry:
            raise GoneError("there is no registry to look into")
        with reaching("the registry"):
            _check_database(self.sources.registry)
            return Registry(self.sources.registry, model)

    @once
    def stored(self, version: Registered) -> Version:
        """A version as the registry has it, not to be believed; or `GoneError`, `UnreachableError`."""
        registry = self.registry(version.model)
        with reaching("the registry"):
            found = registry.version(version.version)
        if found is None:
            raise GoneError(f"{version.name} is not in the registry")
        return found

    @once
    def model_files(self, version: Registered) -> list[Listed]:
        """The files of a version's model folder, from where MLflow loads it; none where they cannot be read."""
        with self.checking("weights", f"the model folder of {version.name}"):
            stored, client = self.stored(version), self.registry(version.model).client
            with reaching("the registry"):
                place = client.get_model_version_download_uri(version.model, version.version)
            for by, uri in ("what MLflow shows", stored.source), ("what MLflow loads", place):
                self.claim(Claim(f"the place of {version.name}", uri, by, "weights"))
            return listing(self.artifacts.open(place))
        return []

    @once
    def evidence(self, version: Registered, name: str) -> dict[str, Listed]:
        """The files of what lies beside the weights under ``name``, by path in it; none where it cannot be read."""
        part = PARTS.get(name, "version")
        with self.checking(part, beside(version, name)):
            files = listing(self.artifacts.open(f"{self.stored(version).evidence}/{name}"))
            self.claim(Claim(beside(version, name), digest_of(files), STORE, part))
            for one in files:
                path, how = f"{name}/{one.name}", f"has it as evidence {name}/{one.name}"
                kind = "sample" if path.startswith("scores/samples/") else "evidence"
                self.claim(Claim(beside(version, path), one.digest, STORE, part, kind, how, version, version.run))
            return {one.name: one for one in files}
        return {}

    def content(self, version: Registered, path: str, most: int = MOST_TEXT) -> bytes:
        """A file of the evidence, whose digest holds, or that of the folder it lies in.

        Raises:
            LineageError: it is not there, too large, or its digest does not hold.
        """
        name, _, inner = path.partition("/")
        files = self.evidence(version, name)
        if inner not in files:
            raise GoneError(f"{path} is not in the artifact store")
        if not self.agree(beside(version, name)) and not self.agree(beside(version, path)):
            raise UnprovenError("it is not opened: what it lies in is not what the ledger names")
        found = read_file(self.artifacts.open(f"{self.stored(version).evidence}/{path}"), most)
        if digest_bytes(found) != files[inner].digest:
            raise LineageError("it was changed while it was read")
        return found

    @once
    def record(self, run: str, step: str) -> StepRecord | None:
        """The record that the ledger names; None where there is none that holds."""
        subject, version, named = f"record {run}/{step}.json", self.version_of.get(run), self.state.records.get(run, {})
        if step not in named:
            self.note("records", "missing", subject, f"the ledger names no record of step {step} of this run")
            return None
        for by, read in ("the folder of records", self._record), ("its copy beside the weights", self._copy):
            with self.checking("records", subject):
                found = StepRecord.model_validate_json(read(run, step))
                self.claim(Claim(subject, found.digest(), by, "records"))
                if found.digest() == named[step]:
                    self.claim(*claims_of_record(found, version))
                    return found
            if version is None or "records" not in version.evidence:
                break
        return None

    def _record(self, run: str, step: str) -> bytes:
        if not self.sources.records:
            raise GoneError("no folder of records was given")
        return read_file(self.artifacts.open(f"{self.sources.records}/{run}/{step}.json"), MOST_TEXT)

    def _copy(self, run: str, step: str) -> bytes:
        return self.content(self.version_of[run], f"records/{step}.json")

    def records(self, run: str) -> dict[str, StepRecord]:
        """All records of a run, in the order in which the steps began; what the ledger does not name is found too."""
        steps = self.state.records.get(run, {})
        found = [record for step in steps if (record := self.record(run, step))]
        with self.checking("records", f"the records of run {run}"):
            for name in self.artifacts.names(f"{self.sources.records}/{run}") if self.sources.records and steps else ():
                if name.removesuffix(".json") not in steps and name.endswith(".json"):
                    reason = "it lies in the folder, and the ledger does not name it"
                    self.note("records", "does not hold", f"record {run}/{name}", reason)
        return {record.step: record for record in sorted(found, key=lambda record: record.started)}

    def base(self, version: Registered) -> str:
        """Digest of the model that training began from; empty where no record holds that says so."""
        record = self.record(version.run, "encode-features")
        return record.inputs.get("base_model", "") if record else ""


def _replay(entries: Sequence[Entry]) -> tuple[State, str]:
    """The state, and why it ends where it does if that is before the last entry."""
    try:
        return replay(entries), ""
    except LineageError as error:
        state = State()
        with suppress(LineageError):
            extend(state, entries)
        with suppress(LineageError):
            return replay(entries[: state.size]), str(error)
        return State(), str(error)


def _check_database(uri: str) -> None:
    """Refuse an SQLite file that MLflow would fill, or whose tables were exchanged for something without an end."""
    place = Path(uri.removeprefix("sqlite:///"))
    if place == Path(uri):
        return
    if not place.is_file() or not place.stat().st_size:
        raise GoneError(f"{place} is empty or not there")
    with closing(sqlite3.connect(f"{place.as_uri()}?mode=ro", uri=True)) as database:
        views = database.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall()
    if views:
        raise ChangedError(f"{place} has views in place of tables: {', '.join(str(v) for (v,) in views)[:200]}")


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
