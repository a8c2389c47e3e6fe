"""What the ledger holds: one signed entry after another, each of one kind.

`lineage.rules` says which entries may follow which, and what they add up to.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, ValidationError
from securesystemslib.dsse import Envelope

from lineage.digests import LineageError, canonical, digest_bytes
from lineage.frozen import Frozen
from lineage.signing import Role

PAYLOAD_TYPE = "application/vnd.triptych.ledger-entry+json"
Action = Literal["promote", "rollback", "withdraw", "override"]
Plain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that can be part of a path and leads nowhere else."""


class LedgerError(LineageError):
    """The ledger cannot be read, does not hold, or refuses an entry; the message says which entry and why."""


class StaleError(LedgerError):
    """The champion is another one than the verdict was given against; judge the candidate anew."""


class BusyError(LedgerError):
    """Another run holds the model's lease; wait for it, or end."""


class Body(Frozen):
    """What an entry says; a key of one of ``roles`` must say it."""

    roles: ClassVar[tuple[Role, ...]]


class Opened(Body):
    """The first entry: the keys that count, by role. Signed by the root key, whose public half is the anchor."""

    roles = ("root",)
    kind: Literal["opened"] = "opened"
    keys: dict[str, dict[str, Any]]


class KeyRotated(Body):
    """A role's key is replaced. Signed by the old key, or by the root."""

    roles = ("root",)
    kind: Literal["key-rotated"] = "key-rotated"
    of: Role
    old: str
    new: dict[str, Any]


class KeyRevoked(Body):
    """A key counts no more; what it signed from entry ``since`` on never counted."""

    roles = ("root",)
    kind: Literal["key-revoked"] = "key-revoked"
    key: str
    since: int
    reason: str


class PolicySet(Body):
    """What a model's candidates are judged by from here on; a verdict under another policy cannot promote."""

    roles = ("promotion", "root")
    kind: Literal["policy-set"] = "policy-set"
    model: str
    digest: str
    """As `lineage.policy.policy_digest` gives it for the two sections below."""
    gate: dict[str, Any]
    """Settings of the gate."""
    evaluation: dict[str, Any]
    """Settings of the evaluation, every place replaced by the digest of what lies there."""
    user: str
    reason: str


class Leased(Body):
    """A run has a model to itself until it is closed, or until the lease expires."""

    roles = ("run",)
    kind: Literal["leased"] = "leased"
    model: str
    run: str
    expires: str
    """ISO 8601, UTC, as in `Entry.time`."""


class Recorded(Body):
    """A step left a record."""

    roles = ("run",)
    kind: Literal["recorded"] = "recorded"
    run: Plain
    step: Plain
    status: str
    record: str


class Judged(Body):
    """The gate gave a verdict; ``verdict`` is the digest of its signed envelope."""

    roles = ("gate",)
    kind: Literal["judged"] = "judged"
    run: str
    model: str
    candidate: str
    incumbent: str
    decision: str
    verdict: str
    evaluation: str
    """Digest of the evaluation set."""
    policy: str
    """Digest of the settings that it was given under, as in `PolicySet.digest`."""


class Registered(Body):
    """A candidate became a version of a model; ``evidence`` are the digests of what lies beside it, by name."""

    roles = ("run",)
    kind: Literal["registered"] = "registered"
    run: str
    model: str
    version: str
    candidate: str
    """Digest of the folder of weights."""
    folder: str
    """Digest of the whole model folder as MLflow keeps it, the weights in it included."""
    verdict: str
    training_key: str
    evaluation_terms: str
    mlflow_run: str
    evidence: dict[str, str]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"version {self.version} of {self.model}"


class Moved(Body):
    """The champion of a model moved. The registry's aliases and tags, and the channel, follow."""

    roles = ("promotion",)
    kind: Literal["moved"] = "moved"
    action: Action
    model: str
    version: str
    candidate: str
    """The weights that the move is about; for a withdrawal those withdrawn."""
    previous_version: str
    """Empty where there was no champion."""
    previous: str
    """Digest of the weights that were champion, or of the base model."""
    verdict: str
    """Digest of the verdict's envelope; empty where none is needed (all but ``promote``)."""
    user: str
    reason: str
    run: str = ""
    """The run that promotes its own candidate; empty: a person moves the champion."""


class Closed(Body):
    """A run ended; its leases end with it."""

    roles = ("run",)
    kind: Literal["closed"] = "closed"
    run: str
    outcome: str


AnyBody = Annotated[
    Opened | KeyRotated | KeyRevoked | PolicySet | Leased | Recorded | Judged | Registered | Moved | Closed,
    Field(discriminator="kind"),
]


class Entry(Frozen):
    """One signed entry. ``previous`` is the digest of the one before it, so that none can be changed or left out."""

    ledger: str
    """The ledger's own name, chosen when it was opened."""
    index: int
    previous: str
    time: str
    """ISO 8601, UTC, milliseconds."""
    body: AnyBody
    key: str
    signature: str = ""
    """Hexadecimal, over the DSSE encoding of everything above as RFC 8785 JSON."""

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        try:
            return bytes(Envelope(canonical(self.model_dump(exclude={"signature"})), PAYLOAD_TYPE, {}).pae())
        except LineageError as error:
            raise LedgerError(f"{self.name} was changed: {error}") from error

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"ledger entry {self.index} ({self.body.kind})"


def entry_digest(entry: Entry, signed: bytes | None = None) -> str:
    """The digest that the next entry names: SHA-256 of the signed bytes and the signature."""
    return digest_bytes((signed or entry.signed_bytes()) + b"\n" + entry.signature.encode())


def read_entry(line: str) -> Entry:
    """One entry from its JSON.

    Raises:
        LedgerError: it is not one, or of a kind that this version does not know.
    """
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors()[0]
        unknown = "; a newer Triptych may know it" if fault["type"].startswith("union_tag") else ""
        raise LedgerError(f"this is not a ledger entry: {line[:80]!r}: {fault['msg']}{unknown}") from error
