"""One audit under way: what it may look into, each piece of evidence read once, and what it found.

Nothing is parsed before its digest was found to be the one that somebody vouches for, and everything within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lineage.artifacts import Artifacts, GoneError, Listed, UnreachableError, digest_of, listing, reaching, read_file
from lineage.audit.claims import LEDGER, STORE, Claim, Index
from lineage.audit.report import Finding, Part, Standing
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Entry, Judged, Moved, Registered, entry_digest
from lineage.memory import Memory
from lineage.records import StepRecord
from lineage.registry import Registry
from lineage.registry import Version as Stored
from lineage.rules import State, replay
from lineage.statements import VERDICT_FILE

MOST_TEXT = 16 * 2**20
"""Bytes of a document that is parsed."""
PARTS: dict[str, Part] = {"validated": "data", "scores": "evaluation", "verdict": "verdict", "model.sig": "weights"}
"""What a piece of evidence is about; the rest is about the version."""
VERDICT_PATH, SAMPLES = f"verdict/{VERDICT_FILE}", "scores/samples/"


Method = TypeVar("Method", bound=Callable[..., Any])


class UnprovenError(LineageError):
    """Neither proof nor alarm."""


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


def judge(error: Exception) -> tuple[Standing, str]:
    """What it shows about evidence that reading it ended so."""
    if isinstance(error, GoneError | UnreachableError):
        return "missing", str(error)
    if isinstance(error, LineageError):
        return "not proven" if isinstance(error, UnprovenError) else "does not hold", str(error)
    # Whatever hostile evidence leads the library that reads it to, MemoryError and RecursionError among it.
    return "does not hold", f"it cannot be read: {type(error).__name__}: {error}"[:1000]


@dataclass(frozen=True)
class Sources:
    """Where the evidence is. Whatever is left out is reported as missing, or as not proven."""

    entries: Sequence[Entry]
    """The ledger, or an export of it; not yet checked."""
    root: str = ""
    """Id of the root key that must have opened it."""
    records: str = ""
    """Where the records are: a folder, or a URI that MLflow reads."""
    registry: str = ""
    """Tracking URI of the MLflow server or store."""
    model: str = ""
    """The model that a bare number means."""
    artifacts: Path | None = None
    """Where ``mlflow-artifacts:`` places lie on this machine, so that no server has to be asked."""
    checkpoints: Sequence[tuple[str, bytes]] = ()
    """Name and content of the signed checkpoints that a witness has."""
    mark: Memory | None = None
    remote: bool = False
    """Whether evidence and images that do not lie on this machine are fetched."""


class Examination:
    """What the ledger says, what lies in the stores, and what was found about both."""

    def __init__(self, sources: Sources, scratch: Path) -> None:
        self.sources = sources
        self.state, self.trouble = _replay(sources.entries)
        self.artifacts = Artifacts(sources.registry, sources.artifacts, scratch, sources.remote)
        self.index = Index()
        self.findings: dict[str, Finding] = {}
        self.images: dict[str, bytes] = {}
        self.proven = ""
        counted = [entry for entry in sources.entries[: self.state.size] if entry.index not in self.state.void]
        self.moves = [entry for entry in counted if isinstance(entry.body, Moved)]
        self.judged = {entry.body.verdict: entry for entry in reversed(counted) if isinstance(entry.body, Judged)}
        first: dict[tuple[str, str], tuple[Entry, Registered]] = {}
        for entry in counted:
            if isinstance(body := entry.body, Registered):
                first.setdefault((body.model, body.version), (entry, body))
        self.registered = first
        """(Model, version) -> its registration, oldest first."""
        self.version_of = {body.run: body for _, body in first.values()}
        """Run -> the version that it registered."""
        self.known: dict[tuple[Any, ...], Any] = {}
        self._load_ledger()

    def entry(self, version: Registered) -> Entry:
        """The entry that registered a version."""
        return self.registered[version.model, version.version][0]

    @property
    def versions(self) -> list[Registered]:
        """All versions of all models, oldest first."""
        return [body for _, body in self.registered.values()]

    def digest_at(self, index: int) -> str:
        """The digest of an entry."""
        return entry_digest(self.sources.entries[index])

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
        decision = self.state.verdicts[version.verdict].decision
        return f"{standing} ({decision})" if standing == "candidate" else standing

    def note(self, part: Part, standing: Standing, subject: str, reason: str) -> None:
        """Keep a finding; what was found wrong with a subject before stays."""
        known = self.findings.get(subject)
        if known is None or known.standing in ("holds", "not proven"):
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

    def compare(self) -> None:
        """Keep what the claims about each subject come to."""
        for found in self.index.findings():
            self.note(found.part, found.standing, found.subject, found.reason)

    def _load_ledger(self) -> None:
        for version in self.versions:
            run, judged = version.run, self.state.verdicts[version.verdict]
            said: list[tuple[str, str, Part, str, str]] = [
                (f"the weights of {called(version)}", version.candidate, "weights", "weights", "has these weights"),
                (f"the model folder of {called(version)}", version.folder, "weights", "folder", "is this model folder"),
                (beside(version, VERDICT_PATH), version.verdict, "verdict", "", ""),
            ]
            for name, digest in version.evidence.items():
                part = PARTS.get(name, "version")
                said += [(beside(version, name), digest, part, "evidence", f"has it as evidence {name!r}")]
                said += [(f"{name} in run {run}", digest, "records", "", "")]
            for name in ("candidate", "incumbent", "decision", "policy"):
                said += [(f"{name} in run {run}", getattr(judged, name), "verdict", "", "")]
            self.index.add(*(Claim(s, v, LEDGER, part, kind, how, version, run) for s, v, part, kind, how in said))
        for digest, judged in self.state.verdicts.items():
            subject = f"the verdict of run {judged.run}"
            self.index.add(Claim(subject, digest, LEDGER, "verdict", "verdict", "the verdict of", run=judged.run))
        for run, steps in self.state.records.items():
            for step, digest in steps.items():
                how = f"the record of step {step} in"
                self.index.add(Claim(f"record {run}/{step}.json", digest, LEDGER, "records", "record", how, run=run))

    @once
    def registry(self, model: str) -> Registry:
        """The registry of a model.

        Raises:
            GoneError, UnreachableError: there is none, or it cannot be read.
        """
        if not self.sources.registry:
            raise GoneError("there is no registry to look into")
        with reaching("the registry"):
            return Registry(self.sources.registry, model)

    @once
    def stored(self, version: Registered) -> Stored:
        """A version as the registry has it; what that says is checked against the ledger.

        Raises:
            GoneError, UnreachableError: it does not have it, or cannot be read.
        """
        registry = self.registry(version.model)
        with reaching("the registry"):
            found = registry.version(version.version)
        if found is None:
            raise GoneError(f"{called(version)} is not in the registry")
        return found

    @once
    def model_files(self, version: Registered) -> list[Listed]:
        """The files of a version's model folder, from where MLflow loads it; empty where they cannot be read."""
        with self.checking("weights", f"the model folder of {called(version)}"):
            stored, client = self.stored(version), self.registry(version.model).client
            with reaching("the registry"):
                place = client.get_model_version_download_uri(version.model, version.version)
            for by, uri in ("what MLflow shows", stored.source), ("what MLflow loads", place):
                self.index.add(Claim(f"the place of {called(version)}", uri, by, "weights"))
            return listing(self.artifacts.open(place))
        return []

    @once
    def evidence(self, version: Registered, name: str) -> dict[str, Listed]:
        """The files of what lies beside the weights under ``name``, by path in it; none where it cannot be read."""
        part = PARTS.get(name, "version")
        with self.checking(part, beside(version, name)):
            files = {one.name: one for one in listing(self.artifacts.open(f"{self.stored(version).evidence}/{name}"))}
            self.index.add(Claim(beside(version, name), digest_of(files.values()), STORE, part))
            for inner, one in files.items() - {("", files.get(""))}:
                path = f"{name}/{inner}"
                kind, how = "sample" if path.startswith(SAMPLES) else "evidence", f"has it as evidence {path}"
                self.index.add(Claim(beside(version, path), one.digest, STORE, part, kind, how, version, version.run))
            return files
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
        if not self.index.agree(beside(version, name)) and not self.index.agree(beside(version, path)):
            raise UnprovenError("it is not opened: what it lies in is not what the ledger names")
        found = read_file(self.artifacts.open(f"{self.stored(version).evidence}/{path}"), most)
        if digest_bytes(found) != files[inner].digest:
            raise LineageError("it was changed while it was read")
        return found

    def claim_files(
        self, by: str, version: Registered, path: str, files: dict[str, str], there: dict[str, Any]
    ) -> None:
        """``by`` names ``files`` (name -> digest) at ``path`` of a version; ``there`` are those that are there."""
        for name, digest in files.items():
            subject = f"{path}/{name} of {called(version)}"
            self.index.add(Claim(subject, digest, by, PARTS.get(path.partition("/")[2], "weights")))
            if name not in there:
                self.note("weights", "missing", subject, f"{by} names it, and it is not in the artifact store")

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
                self.index.add(Claim(subject, found.digest(), by, "records"))
                if found.digest() == named[step]:
                    self.index.add(*_claims_of(found, version))
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
        if self.sources.records and steps:
            with self.checking("records", f"the records of run {run}"):
                for name in self.artifacts.names(f"{self.sources.records}/{run}"):
                    if name.removesuffix(".json") not in steps and name.endswith(".json"):
                        reason = "it lies in the folder, and the ledger does not name it"
                        self.note("records", "does not hold", f"record {run}/{name}", reason)
        return {record.step: record for record in sorted(found, key=lambda record: record.started)}

    def base(self, version: Registered) -> str:
        """Digest of the model that training began from; empty where no record holds that says so."""
        record = self.record(version.run, "encode-features")
        return record.inputs.get("base_model", "") if record else ""


def called(version: Registered) -> str:
    """How findings call a version."""
    return f"version {version.version} of {version.model}"


def beside(version: Registered, name: str) -> str:
    """How findings call a piece of evidence."""
    return f"evidence/{name} of {called(version)}"


def _claims_of(record: StepRecord, version: Registered | None) -> Iterator[Claim]:
    by, run = f"step {record.step}", record.run
    named = [*record.inputs.items(), *record.outputs.items()]
    for name, digest in named:
        how = f"{by} names it as {name}"
        yield Claim(f"{name} in run {run}", digest, by, "records", "digest", how, version, run)
    more = {"code": record.code, "packages": record.packages, "image": record.image or ""}
    more["evaluation set"] = (record.facts.get("evaluation_set") or {}).get("digest", "")
    more |= {f"scorer {scorer['name']}": scorer["digest"] for scorer in record.facts.get("scorers", [])}
    for name, digest in more.items():
        how = f"{by} names it as {name}"
        yield Claim(f"{name} of {by} in run {run}", str(digest), by, "records", "digest", how, version, run)


def _replay(entries: Sequence[Entry]) -> tuple[State, str]:
    """The state, and why it ends where it does if that is before the last entry."""
    try:
        return replay(entries), ""
    except LineageError as error:
        state = State()
        try:
            for entry in entries:
                state.apply(entry)
        except LineageError:
            return replay(entries[: state.size]), str(error)
        return State(), str(error)
