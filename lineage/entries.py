"""What the ledger holds: every kind of entry, who may sign it, and the state that the entries add up to.

The rules are checked where an entry is written and again wherever the ledger is read: a promotion without a verdict
for exactly these weights against exactly this incumbent is refused here, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature

from lineage.digests import LineageError, canonical, digest_bytes
from lineage.signing import ROLES, Role, read_key

PAYLOAD_TYPE = "application/vnd.triptych.ledger-entry+json"
Action = Literal["promote", "rollback", "withdraw", "override"]


class LedgerError(LineageError):
    """The ledger cannot be read, does not hold, or refuses an entry; the message says which entry and why."""


class StaleError(LedgerError):
    """The champion is another one than the verdict was given against; judge the candidate anew."""


class BusyError(LedgerError):
    """Another move of this model is not finished; wait for it, or reconcile."""


class Body(BaseModel):
    """What an entry says; `role` is the role of the key that must say it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: ClassVar[Role]


class Opened(Body):
    """The first entry: the keys that count, by role. Signed by the root key, whose public half is the anchor."""

    role = "root"
    keys: dict[str, dict[str, Any]]


class KeyRotated(Body):
    """A role's key is replaced. Signed by the old key, or by the root."""

    role = "root"
    of: Role
    old: str
    new: dict[str, Any]


class KeyRevoked(Body):
    """A key counts no more; what it signed from entry ``since`` on never counted."""

    role = "root"
    key: str
    since: int
    reason: str


class Recorded(Body):
    """A step left a record."""

    role = "run"
    run: str
    step: str
    status: str
    record: str


class Judged(Body):
    """The gate gave a verdict; ``verdict`` is the digest of its signed envelope."""

    role = "gate"
    run: str
    candidate: str
    incumbent: str
    decision: str
    verdict: str
    model: str = ""
    """The registered model that it is for; empty: any, once."""
    evaluation: str = ""
    """Digest of the evaluation set."""


class Registered(Body):
    """A candidate became a version of a model, by `lineage.keys`; ``evidence`` are digests of what lies beside it."""

    role = "run"
    run: str
    model: str
    version: str
    candidate: str
    verdict: str
    training_key: str
    evaluation_key: str
    mlflow_run: str
    evidence: dict[str, str]


class Intended(Body):
    """The champion of a model is about to move. From here on it has moved; ``Completed`` says that aliases agree."""

    role = "promotion"
    move: str
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


class Completed(Body):
    """A move is done: the registry's aliases and tags agree."""

    role = "promotion"
    move: str


class Abandoned(Body):
    """A move is given up; the champion before it is champion again."""

    role = "promotion"
    move: str
    reason: str


class Closed(Body):
    """A run ended."""

    role = "run"
    run: str
    outcome: str


KINDS: dict[str, type[Body]] = {
    "opened": Opened,
    "key-rotated": KeyRotated,
    "key-revoked": KeyRevoked,
    "recorded": Recorded,
    "judged": Judged,
    "registered": Registered,
    "intended": Intended,
    "completed": Completed,
    "abandoned": Abandoned,
    "closed": Closed,
}
NAMES = {body: name for name, body in KINDS.items()}


class Entry(BaseModel):
    """One signed entry. ``previous`` is the digest of the one before it, so that none can be changed or left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ledger: str
    """The ledger's own name, chosen when it was opened."""
    index: int
    previous: str
    time: str
    kind: str
    body: dict[str, Any]
    key: str
    signature: str = ""
    """Hexadecimal, over the DSSE encoding of everything above as RFC 8785 JSON."""

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        content = {
            "ledger": self.ledger,
            "index": self.index,
            "previous": self.previous,
            "time": self.time,
            "kind": self.kind,
            "body": self.body,
            "key": self.key,
        }
        try:
            return bytes(Envelope(canonical(content), PAYLOAD_TYPE, {}).pae())
        except LineageError as error:
            raise LedgerError(f"{self.name} was changed: {error}") from error

    def read(self) -> Body:
        """What it says.

        Raises:
            LedgerError: unknown kind or malformed body.
        """
        if self.kind not in KINDS:
            raise LedgerError(f"{self.name} is of unknown kind {self.kind!r}; a newer Triptych may know it")
        try:
            return KINDS[self.kind].model_validate(self.body)
        except ValidationError as error:
            raise LedgerError(f"{self.name} is malformed: {error.errors()[0]['msg']}") from error

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"ledger entry {self.index} ({self.kind})"


def entry_digest(entry: Entry, signed: bytes | None = None) -> str:
    """The digest that the next entry names: SHA-256 of the signed bytes and the signature."""
    return digest_bytes((signed or entry.signed_bytes()) + b"\n" + entry.signature.encode())


@dataclass
class KnownKey:
    """A key with the entries in which it counts."""

    role: Role
    key: Key
    since: int
    until: int | None = None
    """Index of the entry that rotated or revoked it."""
    distrusted: int | None = None
    """Its entries from this index on never counted."""


@dataclass(frozen=True)
class Standing:
    """A version that is or was champion."""

    version: str
    candidate: str
    move: str


@dataclass
class State:
    """What the entries so far add up to."""

    ledger: str = ""
    size: int = 0
    head: str = ""
    """Digest of the last entry; empty before the first."""
    time: str = ""
    keys: dict[str, KnownKey] = field(default_factory=dict)
    records: dict[tuple[str, str], str] = field(default_factory=dict)
    """(run, step) -> digest of its last record."""
    outcomes: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Judged] = field(default_factory=dict)
    """Digest of the envelope -> what it says."""
    judged_for: dict[str, str] = field(default_factory=dict)
    """Digest of a verdict -> the model that it was registered for."""
    versions: dict[tuple[str, str], Registered] = field(default_factory=dict)
    """(model, version) -> its registration."""
    champions: dict[str, list[Standing]] = field(default_factory=dict)
    """Model -> its champions in order; the last one is the champion, unless it was withdrawn."""
    approved: dict[str, list[Standing]] = field(default_factory=dict)
    """Model -> those that a person made champion, in order."""
    withdrawn: set[str] = field(default_factory=set)
    """Digests of withdrawn weights."""
    pending: dict[str, Intended] = field(default_factory=dict)
    """Moves neither completed nor abandoned."""
    moves: dict[str, Intended] = field(default_factory=dict)
    void: dict[int, str] = field(default_factory=dict)
    """Entries that do not count since a key was revoked -> why."""
    clock_steps: list[str] = field(default_factory=list)
    """Entries whose time lies before that of the entry before them."""

    def champion(self, model: str) -> Standing | None:
        """The champion of ``model``, if it has one."""
        standing = self.champions.get(model, [])
        return standing[-1] if standing and standing[-1].candidate not in self.withdrawn else None

    def anchor(self, model: str) -> Standing | None:
        """The last version that a person made champion, if it was not withdrawn; else the one approved before it."""
        approved = reversed(self.approved.get(model, []))
        return next((standing for standing in approved if standing.candidate not in self.withdrawn), None)

    def key_of(self, role: Role) -> Key:
        """The key that speaks for ``role`` now.

        Raises:
            LedgerError: it was revoked and not replaced.
        """
        for known in self.keys.values():
            if known.role == role and known.until is None:
                return known.key
        raise LedgerError(f"no {role} key counts at entry {self.size}; have the root key name a new one")

    def verdict_keys(self) -> list[Key]:
        """The gate's keys, past ones included, that were never distrusted as a whole."""
        return [k.key for k in self.keys.values() if k.role == "gate" and k.distrusted != k.since]

    def apply(self, entry: Entry, verified: bool = False, distrust: dict[str, int] | None = None) -> None:
        """Check the next entry and add it.

        Args:
            verified: its signature and place in the chain were checked already.
            distrust: key id -> index from which its entries are skipped, from revocations further on.

        Raises:
            LedgerError: it does not follow, is not signed by a key that counts, or breaks a rule.
        """
        signed = entry.signed_bytes()
        body = entry.read()
        try:
            if not verified:
                self._check_place(entry)
                self._check_signature(entry, body, signed)
            self._count(entry, body, distrust or {})
        except LedgerError:
            raise
        except LineageError as error:
            raise LedgerError(f"{entry.name}: {error}") from error
        if entry.time < self.time:
            self.clock_steps.append(entry.name)
        self.ledger, self.size, self.time = entry.ledger, entry.index + 1, entry.time
        self.head = entry_digest(entry, signed)

    def _count(self, entry: Entry, body: Body, distrust: dict[str, int]) -> None:
        if entry.index >= distrust.get(entry.key, entry.index + 1):
            self.void[entry.index] = f"its key {entry.key[:12]} was revoked from entry {distrust[entry.key]} on"
            if isinstance(body, KeyRotated):
                self._name_heir(entry, body, distrust)
            return
        try:
            getattr(self, f"_on_{entry.kind.replace('-', '_')}")(entry, body)
        except LedgerError as error:
            if not self.void:
                raise
            self.void[entry.index] = str(error)  # it rests on an entry that does not count

    def _check_place(self, entry: Entry) -> None:
        if entry.index != self.size:
            raise LedgerError(f"{entry.name} follows entry {self.size - 1}: one is missing, repeated or out of order")
        if entry.previous != self.head:
            raise LedgerError(f"{entry.name} does not follow the entry before it: one of the two was changed")
        if self.size and entry.ledger != self.ledger:
            raise LedgerError(f"{entry.name} belongs to ledger {entry.ledger}, not to {self.ledger}")

    def _check_signature(self, entry: Entry, body: Body, signed: bytes) -> None:
        known = self.keys.get(entry.key)
        if not self.size and isinstance(body, Opened) and "root" in body.keys:
            known = KnownKey("root", read_key(body.keys["root"]), 0)
        if known is None or known.key.keyid != entry.key:
            raise LedgerError(f"{entry.name} is signed by key {entry.key[:12]}, which this ledger does not know")
        if known.until is not None:
            raise LedgerError(f"{entry.name} is signed by key {entry.key[:12]}, which entry {known.until} retired")
        own = isinstance(body, KeyRotated) and entry.key == body.old
        if known.role != body.role and not own:
            raise LedgerError(f"{entry.name} is signed by a {known.role} key; only a {body.role} key may say this")
        try:
            known.key.verify_signature(Signature(entry.key, entry.signature), signed)
        except UnverifiedSignatureError as error:
            raise LedgerError(f"{entry.name} was changed: its signature does not hold") from error

    def _on_opened(self, entry: Entry, body: Opened) -> None:
        if self.size:
            raise LedgerError(f"{entry.name}: the ledger is open already")
        if set(body.keys) != set(ROLES):
            raise LedgerError(f"{entry.name} must name one key for each of {', '.join(ROLES)}")
        for role in ROLES:
            key = read_key(body.keys[role])
            self.keys[key.keyid] = KnownKey(role, key, entry.index)

    def _on_key_rotated(self, entry: Entry, body: KeyRotated) -> None:
        key, old = read_key(body.new), self.keys.get(body.old)
        if old is None or old.role != body.of or key.keyid in self.keys:
            raise LedgerError(f"{entry.name}: {body.old[:12]} is no {body.of} key, or the new key is known already")
        old.until = entry.index if old.until is None else old.until
        self.keys[key.keyid] = KnownKey(body.of, key, entry.index)

    def _name_heir(self, entry: Entry, body: KeyRotated, distrust: dict[str, int]) -> None:
        """A key that a revoked key named in its place is known, so that its entries can be told, and never counts."""
        self._on_key_rotated(entry, body)
        heir = read_key(body.new).keyid
        self.keys[heir].distrusted = distrust[heir] = entry.index

    def _on_key_revoked(self, entry: Entry, body: KeyRevoked) -> None:
        known = self.keys.get(body.key)
        if known is None or known.role == "root":
            raise LedgerError(f"{entry.name}: {body.key[:12]} is no key that can be revoked")
        known.distrusted = body.since
        for distrusted in self.keys.values():
            if distrusted.distrusted is not None and distrusted.until is None:
                distrusted.until = entry.index

    def _on_recorded(self, entry: Entry, body: Recorded) -> None:
        self.records[body.run, body.step] = body.record

    def _on_closed(self, entry: Entry, body: Closed) -> None:
        self.outcomes[body.run] = body.outcome

    def _on_judged(self, entry: Entry, body: Judged) -> None:
        if self.verdicts.setdefault(body.verdict, body) != body:
            raise LedgerError(f"{entry.name}: the ledger says something else of this verdict already")

    def _on_registered(self, entry: Entry, body: Registered) -> None:
        judged = self.verdicts.get(body.verdict)
        if judged is None or judged.candidate != body.candidate:
            raise LedgerError(f"{entry.name}: no verdict in the ledger is about these weights ({body.candidate[:19]}…)")
        if judged.run != body.run or self.judged_for.get(body.verdict, judged.model or body.model) != body.model:
            raise LedgerError(f"{entry.name}: its verdict was given in another run, or for another model")
        if self.versions.get((body.model, body.version), body) != body:
            raise LedgerError(
                f"{entry.name}: version {body.version} of {body.model} is in the ledger with other evidence; what was "
                "registered never changes: register a new version"
            )
        self.judged_for[body.verdict], self.versions[body.model, body.version] = body.model, body

    def _on_intended(self, entry: Entry, body: Intended) -> None:
        if body.move in self.moves:
            raise LedgerError(f"{entry.name}: move {body.move} is in the ledger already")
        self.check_move(body)
        self.moves[body.move] = self.pending[body.move] = body
        standing = self.champions.setdefault(body.model, [])
        if body.action == "withdraw":
            self.withdrawn.add(body.candidate)
        else:
            standing.append(Standing(body.version, body.candidate, body.move))
            # A run promotes its own candidate before it closes; whatever else moves the champion is a person.
            if body.action != "promote" or self.versions[body.model, body.version].run in self.outcomes:
                self.approved.setdefault(body.model, []).append(standing[-1])

    def check_move(self, move: Intended) -> None:
        """Whether the champion may move so now.

        Raises:
            BusyError: another move of this model is not finished.
            StaleError: the champion is another one than the mover, or the verdict, believes.
            LedgerError: it may not for another reason.
        """
        open_moves = [other.move for other in self.pending.values() if other.model == move.model]
        if open_moves:
            raise BusyError(f"move {open_moves[0]} of {move.model} is not finished; run: triptych reconcile")
        champion = self.champion(move.model)
        if move.previous_version != (champion.version if champion else "") or (
            champion and champion.candidate != move.previous
        ):
            now = f"version {champion.version} ({champion.candidate[:19]}…)" if champion else "none"
            raise StaleError(f"stale: the champion of {move.model} is {now}, expected {move.previous[:19]}…")
        registered = self.versions.get((move.model, move.version))
        if registered is None or registered.candidate != move.candidate:
            raise LedgerError(
                f"version {move.version} of {move.model} was not registered with the weights {move.candidate[:19]}…"
            )
        if move.action != "withdraw" and move.candidate in self.withdrawn:
            raise LedgerError(f"version {move.version} of {move.model} was withdrawn and can never be champion again")
        if move.action == "promote":
            self._check_verdict(move)
        elif not move.reason:
            raise LedgerError(f"{move.action} needs a reason")
        if move.action == "rollback" and move.candidate not in {
            past.candidate for past in self.champions.get(move.model, [])
        }:
            raise LedgerError(
                f"version {move.version} of {move.model} was never champion; a rollback goes to one that was"
            )

    def _check_verdict(self, move: Intended) -> None:
        judged = self.verdicts.get(move.verdict)
        if judged is None or judged.candidate != move.candidate:
            raise LedgerError(f"no verdict of the gate is about version {move.version} of {move.model} and its weights")
        if judged.decision != "promote":
            raise LedgerError(
                f"the gate's verdict on version {move.version} of {move.model} is {judged.decision}, not promote"
            )
        if judged.incumbent != move.previous:
            raise StaleError(
                f"stale: the verdict on version {move.version} of {move.model} was given against "
                f"{judged.incumbent[:19]}…, the champion is {move.previous[:19]}…; run again to judge it anew"
            )
        if not move.previous_version and judged.incumbent in {v.candidate for v in self.versions.values()}:
            raise StaleError(
                f"stale: the verdict on version {move.version} of {move.model} was given against a former champion"
            )

    def _on_completed(self, entry: Entry, body: Completed) -> None:
        if self.pending.pop(body.move, None) is None:
            raise LedgerError(f"{entry.name}: move {body.move} is not open")

    def _on_abandoned(self, entry: Entry, body: Abandoned) -> None:
        move = self.pending.pop(body.move, None)
        if move is None:
            raise LedgerError(f"{entry.name}: move {body.move} is not open")
        if move.action == "withdraw":
            raise LedgerError(f"{entry.name}: a withdrawal is for good and cannot be given up; run: triptych reconcile")
        given_up = self.champions[move.model].pop()
        self.approved[move.model] = [one for one in self.approved.get(move.model, []) if one != given_up]


def replay(entries: Iterable[Entry]) -> State:
    """Check a whole ledger and give the state that it adds up to.

    What a key signed from the entry on from which it was distrusted is checked for its place and signature, and then
    left out of the state.

    Raises:
        LedgerError: it does not hold; the message names the entry.
    """
    entries = list(entries)
    distrust: dict[str, int] = {}
    for entry in entries:
        if entry.kind == "key-revoked":
            body = entry.read()
            assert isinstance(body, KeyRevoked)
            distrust[body.key] = min(body.since, distrust.get(body.key, body.since))
    state = State()
    extend(state, entries, distrust)
    return state


def extend(state: State, entries: Iterable[Entry], distrust: dict[str, int] | None = None) -> None:
    """Add entries that somebody wrote; see `State.apply`.

    Raises:
        LedgerError: one of them does not hold; the message names it.
    """
    for entry in entries:
        try:
            state.apply(entry, distrust=distrust)
        except LedgerError as error:
            if entry.name in str(error):
                raise
            raise type(error)(f"{entry.name}: {error}") from error
