"""What an audit may look into, and what it answers: what the ledger says stands in it as the entries that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, computed_field

from lineage.entries import Entry, Judged, Registered
from lineage.frozen import Frozen
from lineage.memory import Memory
from lineage.records import StepRecord

Standing = Literal["does not hold", "missing", "not proven", "holds"]
LEDGER, STORE = "the ledger", "the artifact store"
"""Who makes most claims."""
Part = Literal["ledger", "records", "data", "weights", "evaluation", "verdict", "version", "moves", "picture"]


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


class Finding(Frozen):
    """One thing that was checked. ``not proven`` is what no evidence here could prove; the rest speaks for itself."""

    part: Part
    standing: Standing
    subject: str
    """The file, record, entry or signature."""
    reason: str


class Picture(Frozen):
    """A training image, as the snapshot has it."""

    file_name: str
    sha256: str
    text: str | None
    license: str | None
    consent: str | None
    source: str | None
    uri: str | None = None
    refused: tuple[str, ...] = ()
    """Why it was not trained on."""


class Data(Frozen):
    """What one training was given."""

    version: str
    run: str
    snapshot: str
    """Digest of all rows that were there."""
    accepted: str
    """Digest of the rows trained on."""
    pictures: tuple[Picture, ...] | None
    """None where the manifest does not hold."""
    refused: tuple[Picture, ...] | None


class Use(Frozen):
    """A version that has to do with what was asked about."""

    model: str
    version: str
    standing: str
    how: str


class Registration(Frozen):
    """A version as the ledger has it, and the verdict that it was registered with."""

    registered: Entry
    judged: Entry

    @property
    def body(self) -> Registered:
        """The registration."""
        return cast(Registered, self.registered.body)

    @property
    def verdict(self) -> Judged:
        """The verdict."""
        return cast(Judged, self.judged.body)


class Version(Registration):
    """A version, and everything that led to it and came of it."""

    standing: str
    incumbent_name: str
    predicate: dict[str, Any] | None
    """The signed verdict itself; None where it does not hold."""
    seeds: dict[str, tuple[int, ...]]
    """Prompt of the evaluation set -> the seeds that it was drawn with."""
    trained_by: StepRecord | None
    """The step that trained the weights: of an earlier run where this one only judged them anew."""
    base: str
    """Digest of the model that training began from; empty: unknown."""
    base_name: str
    data: tuple[Data, ...]
    """Its own, then that of each version it was trained from."""
    chain: tuple[Registration, ...]
    """Itself, what it was judged against, what that was judged against, down to the base model."""
    moves: tuple[Entry, ...]
    """The champion's moves to this version and away from it."""
    descendants: tuple[Use, ...]
    """Versions trained from it, and versions judged against it."""


class Ledger(Frozen):
    """The ledger that was read."""

    name: str
    size: int
    head: str
    root: str
    proven: str
    """How far it is known to be complete."""
    keys: dict[str, str]
    """Key id -> role, and when it stopped to count."""


class Report(Frozen):
    """The answer to one question."""

    what: str
    kind: str
    found: str
    ledger: Ledger
    run: str
    outcome: str
    records: dict[str, StepRecord]
    version: Version | None
    uses: tuple[Use, ...]
    claims: dict[str, str]
    """What a generated picture says of itself."""
    findings: tuple[Finding, ...]
    images: dict[str, bytes] = Field(default_factory=dict, exclude=True, repr=False)
    """Name -> bytes of pictures to show, each one checked."""

    def count(self, standing: Standing) -> int:
        """How many findings are so."""
        return sum(finding.standing == standing for finding in self.findings)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """Nothing that was checked fails, and nothing is missing that the ledger names."""
        return not self.count("does not hold") and not self.count("missing")
