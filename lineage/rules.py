"""The rules of the ledger: which entry may follow, and the state that the entries add up to.

They are checked where an entry is written and again wherever the ledger is read: a promotion without a verdict for
exactly these weights against exactly this incumbent is refused here, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from securesystemslib.signer import Key

from lineage.digests import LineageError
from lineage.entries import (
    BusyError,
    Closed,
    Entry,
    Judged,
    KeyRevoked,
    KeyRotated,
    Leased,
    LedgerError,
    Moved,
    Opened,
    PolicySet,
    Recorded,
    Registered,
    StaleError,
    entry_digest,
)
from lineage.policy import policy_digest
from lineage.signing import ROLES, Role, check_signature, read_key

LONGEST_LEASE = timedelta(days=7)
Standing = Literal["champion", "former champion", "candidate", "withdrawn", "not in the ledger"]


class KnownKey(BaseModel):
    """A key with the entries in which it counts."""

    role: Role
    facts: dict[str, Any]
    """The public key as JSON, see `lineage.signing.key_facts`."""
    since: int
    until: int | None = None
    """Index of the entry that rotated or revoked it."""
    distrusted: int | None = None
    """Its entries from this index on never counted."""
    _key: Key | None = PrivateAttr(default=None)

    @property
    def key(self) -> Key:
        """The public key."""
        if self._key is None:
            self._key = read_key(self.facts)
        return self._key

    @property
    def counted(self) -> bool:
        """Whether anything that it signed counts."""
        return self.distrusted is None or self.distrusted > self.since


class Champion(BaseModel):
    """A version that is or was champion."""

    model_config = ConfigDict(frozen=True)

    version: str
    candidate: str
    entry: int
    """Index of the move."""


class State(BaseModel):
    """What the entries so far add up to."""

    ledger: str = ""
    size: int = 0
    head: str = ""
    """Digest of the last entry; empty before the first."""
    time: str = ""
    keys: dict[str, KnownKey] = Field(default_factory=dict)
    records: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Run -> step -> digest of its last record."""
    outcomes: dict[str, str] = Field(default_factory=dict)
    """Run -> how it ended."""
    policies: dict[str, PolicySet] = Field(default_factory=dict)
    """Model -> what its candidates are judged by now."""
    leases: dict[str, Leased] = Field(default_factory=dict)
    """Model -> the run that had it last, if that is not closed."""
    verdicts: dict[str, Judged] = Field(default_factory=dict)
    """Digest of the envelope -> what it says."""
    versions: dict[str, dict[str, Registered]] = Field(default_factory=dict)
    """Model -> version -> its registration."""
    champions: dict[str, list[Champion]] = Field(default_factory=dict)
    """Model -> its champions in order; the last one is the champion, unless it was withdrawn."""
    approved: dict[str, list[Champion]] = Field(default_factory=dict)
    """Model -> those that a person made champion, in order."""
    used: set[str] = Field(default_factory=set)
    """Digests of verdicts that made their candidate champion, which each does once."""
    withdrawn: set[str] = Field(default_factory=set)
    """Digests of withdrawn weights."""
    moved: dict[str, int] = Field(default_factory=dict)
    """Model -> index of its last move."""
    revoked: int | None = None
    """Index of the last revocation of a key."""
    void: dict[int, str] = Field(default_factory=dict)
    """Entries that do not count since a key was revoked -> why."""
    clock_steps: list[str] = Field(default_factory=list)
    """Entries whose time lies before that of the entry before them."""

    def champion(self, model: str) -> Champion | None:
        """The champion of ``model``, if it has one."""
        past = self.champions.get(model, [])
        return past[-1] if past and past[-1].candidate not in self.withdrawn else None

    def anchor(self, model: str) -> Champion | None:
        """The last version that a person made champion; where nobody did, the first champion. None is withdrawn."""
        known = [*reversed(self.approved.get(model, [])), *self.champions.get(model, [])]
        return next((champion for champion in known if champion.candidate not in self.withdrawn), None)

    def decisions(self, evaluation: str) -> int:
        """How many verdicts were given on an evaluation set; parts of it, which it names after its digest, count."""
        of = [judged for judged in self.verdicts.values() if judged.decision != "invalid"]
        return sum(_whole_set(judged.evaluation) == _whole_set(evaluation) != "" for judged in of)

    def decided(self, model: str) -> int | None:
        """Index of the entry that decided who is champion of ``model``; None where nothing ever did."""
        if model not in self.moved:
            return None
        return max(self.moved[model], self.revoked or 0)  # a revocation can undo moves

    def registered(self, model: str, version: str) -> Registered | None:
        """The registration of a version, if there is one."""
        return self.versions.get(model, {}).get(version)

    def standing(self, model: str, version: str) -> Standing:
        """What a version is now."""
        registered, champion = self.registered(model, version), self.champion(model)
        if registered is None:
            return "not in the ledger"
        if registered.candidate in self.withdrawn:
            return "withdrawn"
        if champion and champion.version == version:
            return "champion"
        past = {champion.version for champion in self.champions.get(model, [])}
        return "former champion" if version in past else "candidate"

    def key_of(self, role: Role) -> Key:
        """The key that speaks for ``role`` now.

        Raises:
            LedgerError: it was revoked and not replaced.
        """
        for known in self.keys.values():
            if known.role == role and known.until is None:
                return known.key
        raise LedgerError(f"no {role} key counts at entry {self.size}; have the root key name a new one")

    def keys_of(self, role: Role) -> list[Key]:
        """The keys of a role, past ones included, that were not distrusted from their first entry on."""
        return [known.key for known in self.keys.values() if known.role == role and known.counted]

    def apply(self, entry: Entry, distrust: dict[str, int] | None = None, revoked: int = 0) -> None:
        """Check the next entry and add it.

        Args:
            distrust: key id -> index from which its entries are skipped, from revocations further on.
            revoked: index of the last revocation. An entry before it that breaks a rule because another one does not
                count does not count either; an entry after it was checked against what counts, and is refused.

        Raises:
            LedgerError: it does not follow, is not signed by a key that counts, or breaks a rule.
        """
        try:
            self._check_place(entry)
            signed = self._check_signature(entry)
            self._count(entry, distrust or {}, revoked)
        except LedgerError:
            raise
        except LineageError as error:
            raise LedgerError(f"{entry.name}: {error}") from error
        if entry.time < self.time:
            self.clock_steps.append(entry.name)
        self.ledger, self.size, self.time = entry.ledger, entry.index + 1, entry.time
        self.head = entry_digest(entry, signed)

    def _count(self, entry: Entry, distrust: dict[str, int], revoked: int) -> None:
        body = entry.body
        if entry.index >= distrust.get(entry.key, entry.index + 1):
            self._leave_out(entry, f"its key {entry.key[:12]} was revoked from entry {distrust[entry.key]} on")
            if isinstance(body, KeyRotated):
                self._distrust_successor(entry, body, distrust)
            return
        try:
            getattr(self, f"_on_{body.kind.replace('-', '_')}")(entry, body)
        except LedgerError as error:
            if not self.void or entry.index >= revoked:
                raise
            self._leave_out(entry, str(error))  # it rests on an entry that does not count

    def _leave_out(self, entry: Entry, why: str) -> None:
        self.void[entry.index] = why
        if isinstance(entry.body, Moved):
            self.moved[entry.body.model] = entry.index
        if isinstance(entry.body, Moved) and entry.body.action == "withdraw":
            # Withdrawn for law or consent: no lost key brings the weights back.
            self.withdrawn.add(entry.body.candidate)

    def _check_place(self, entry: Entry) -> None:
        if entry.index != self.size:
            raise LedgerError(f"{entry.name} follows entry {self.size - 1}: one is missing, repeated or out of order")
        if entry.previous != self.head:
            raise LedgerError(f"{entry.name} does not follow the entry before it: one of the two was changed")
        if self.size and entry.ledger != self.ledger:
            raise LedgerError(f"{entry.name} belongs to ledger {entry.ledger}, not to {self.ledger}")

    def _check_signature(self, entry: Entry) -> bytes:
        """What a key that may say this signed; it is put together once all that costs less was looked at."""
        known, body = self.keys.get(entry.key), entry.body
        if not self.size and isinstance(body, Opened) and "root" in body.keys:
            known = KnownKey(role="root", facts=body.keys["root"], since=0)
        if known is None or known.key.keyid != entry.key:
            raise LedgerError(f"{entry.name} is signed by key {entry.key[:12]}, which this ledger does not know")
        if known.until is not None:
            raise LedgerError(f"{entry.name} is signed by key {entry.key[:12]}, which entry {known.until} retired")
        own = isinstance(body, KeyRotated) and entry.key == body.old
        if known.role not in body.roles and not own:
            allowed = " or ".join(body.roles)
            raise LedgerError(f"{entry.name} is signed by a {known.role} key; only a {allowed} key may say this")
        if not check_signature(known.key, entry.signature, signed := entry.signed_bytes()):
            raise LedgerError(f"{entry.name} was changed: its signature does not hold")
        return signed

    def _on_opened(self, entry: Entry, body: Opened) -> None:
        if self.size:
            raise LedgerError(f"{entry.name}: the ledger is open already")
        if set(body.keys) != set(ROLES):
            raise LedgerError(f"{entry.name} must name one key for each of {', '.join(ROLES)}")
        for role in ROLES:
            self._add_key(role, body.keys[role], entry.index)

    def _add_key(self, role: Role, facts: dict[str, Any], since: int) -> KnownKey:
        key = read_key(facts)
        if key.keyid in self.keys:
            raise LedgerError(f"key {key.keyid[:12]} is known already")
        self.keys[key.keyid] = known = KnownKey(role=role, facts=facts, since=since)
        return known

    def _on_key_rotated(self, entry: Entry, body: KeyRotated) -> None:
        old = self.keys.get(body.old)
        if old is None or old.role != body.of:
            raise LedgerError(f"{entry.name}: {body.old[:12]} is no {body.of} key")
        self._add_key(body.of, body.new, entry.index)
        old.until = entry.index if old.until is None else old.until

    def _distrust_successor(self, entry: Entry, body: KeyRotated, distrust: dict[str, int]) -> None:
        """A key that a revoked key named in its place is known, so that its entries can be told, and never counts."""
        self._on_key_rotated(entry, body)
        successor = read_key(body.new).keyid
        self.keys[successor].distrusted = distrust[successor] = entry.index

    def _on_key_revoked(self, entry: Entry, body: KeyRevoked) -> None:
        known = self.keys.get(body.key)
        if known is None or known.role == "root":
            raise LedgerError(f"{entry.name}: {body.key[:12]} is no key that can be revoked")
        known.distrusted = min(body.since, known.distrusted if known.distrusted is not None else body.since)
        self.revoked = entry.index
        for distrusted in self.keys.values():
            if distrusted.distrusted is not None and distrusted.until is None:
                distrusted.until = entry.index

    def _on_policy_set(self, entry: Entry, body: PolicySet) -> None:
        if policy_digest(body.evaluation, body.gate) != body.digest:
            raise LedgerError(f"{entry.name}: its digest is not that of the settings it names")
        self.policies[body.model] = body

    def _on_leased(self, entry: Entry, body: Leased) -> None:
        holder = self.leases.get(body.model)
        if holder and holder.run != body.run and entry.time < holder.expires:
            raise BusyError(
                f"run {holder.run} has {body.model} to itself until {holder.expires}; wait for it to end, or close it"
            )
        try:
            expires = datetime.fromisoformat(body.expires)
            length = expires - datetime.fromisoformat(entry.time)
        except (ValueError, TypeError) as error:
            raise LedgerError(f"{entry.name}: the lease expires at no time: {error}") from error
        if expires.astimezone(UTC).isoformat(timespec="milliseconds") != body.expires:
            raise LedgerError(f"{entry.name}: the lease expires at no time: write it as entries write theirs")
        if length > LONGEST_LEASE:
            raise LedgerError(f"{entry.name}: a lease of {length} is longer than {LONGEST_LEASE}")
        self.leases[body.model] = body

    def _on_recorded(self, entry: Entry, body: Recorded) -> None:
        self.records.setdefault(body.run, {})[body.step] = body.record

    def _on_closed(self, entry: Entry, body: Closed) -> None:
        self.outcomes[body.run] = body.outcome
        self.leases = {model: lease for model, lease in self.leases.items() if lease.run != body.run}

    def _on_judged(self, entry: Entry, body: Judged) -> None:
        if self.verdicts.setdefault(body.verdict, body) != body:
            raise LedgerError(f"{entry.name}: the ledger says something else of this verdict already")

    def _on_registered(self, entry: Entry, body: Registered) -> None:
        judged = self.verdicts.get(body.verdict)
        if judged is None or judged.candidate != body.candidate:
            raise LedgerError(f"{entry.name}: no verdict in the ledger is about these weights ({body.candidate[:24]}…)")
        if (judged.run, judged.model) != (body.run, body.model):
            raise LedgerError(f"{entry.name}: its verdict was given in another run, or for another model")
        if self.versions.setdefault(body.model, {}).setdefault(body.version, body) != body:
            raise LedgerError(
                f"{entry.name}: version {body.version} of {body.model} is in the ledger with other evidence; what was "
                "registered never changes: register a new version"
            )

    def _on_moved(self, entry: Entry, body: Moved) -> None:
        self.check_move(body)
        self.moved[body.model] = entry.index
        if body.action == "withdraw":
            self.withdrawn.add(body.candidate)
            return
        champion = Champion(version=body.version, candidate=body.candidate, entry=entry.index)
        self.champions.setdefault(body.model, []).append(champion)
        self.used.add(body.verdict)
        if not body.run:
            self.approved.setdefault(body.model, []).append(champion)

    def check_move(self, move: Moved) -> None:
        """Whether the champion may move so now.

        Raises:
            StaleError: the champion is another one than the mover, or the verdict, believes.
            LedgerError: it may not for another reason.
        """
        what, champion = f"version {move.version} of {move.model}", self.champion(move.model)
        if move.previous_version != (champion.version if champion else "") or (
            champion and champion.candidate != move.previous
        ):
            now = f"version {champion.version} ({champion.candidate[:24]}…)" if champion else "none"
            raise StaleError(f"stale: the champion of {move.model} is {now}, expected {move.previous[:24]}…")
        registered = self.registered(move.model, move.version)
        if registered is None or registered.candidate != move.candidate:
            raise LedgerError(f"{what} was not registered with the weights {move.candidate[:24]}…")
        if move.candidate in self.withdrawn:
            raise LedgerError(f"{what} was withdrawn and can never be champion again")
        former = any(past.version == move.version for past in self.champions.get(move.model, []))
        if move.action == "promote":
            if former or move.verdict in self.used:
                raise LedgerError(f"{what} was champion before; going back needs a reason: triptych rollback")
            self._check_verdict(move, what)
        elif not move.reason.strip():
            raise LedgerError(f"{move.action} needs a reason")
        if move.action == "rollback" and not former:
            raise LedgerError(f"{what} was never champion; a rollback goes to one that was")

    def _check_verdict(self, move: Moved, what: str) -> None:
        judged, policy = self.verdicts.get(move.verdict), self.policies.get(move.model)
        if judged is None or judged.candidate != move.candidate or judged.model != move.model:
            raise LedgerError(f"no verdict of the gate is about {what} and its weights")
        if judged.decision != "promote":
            raise LedgerError(f"the gate's verdict on {what} is {judged.decision}, not promote")
        if policy is None or policy.digest != judged.policy:
            raise LedgerError(
                f"the verdict on {what} was given under policy {judged.policy[:19]}…, and the ledger pins "
                f"{policy.digest[:19] + '…' if policy else 'none'} for {move.model}; judge it under that one, or have "
                "the policy changed: triptych policy set"
            )
        if judged.incumbent != move.previous:
            raise StaleError(
                f"stale: the verdict on {what} was given against {judged.incumbent[:24]}…, the champion is "
                f"{move.previous[:24]}…; run again to judge it anew"
            )
        known = {version.candidate for version in self.versions[move.model].values()}
        if not move.previous_version and judged.incumbent in known:
            raise StaleError(f"stale: the verdict on {what} was given against a former champion")


def _whole_set(evaluation: str) -> str:
    return ":".join(evaluation.split(":")[:2])


def replay(entries: Iterable[Entry]) -> State:
    """Check a whole ledger and give the state that it adds up to.

    What a key signed from the entry on from which it was distrusted is checked for its place and signature, and then
    left out of the state.

    Raises:
        LedgerError: it does not hold; the message names the entry.
    """
    entries, distrust, revoked = list(entries), dict[str, int](), 0
    for entry in entries:
        if isinstance(body := entry.body, KeyRevoked):
            distrust[body.key] = min(body.since, distrust.get(body.key, body.since))
            revoked = entry.index
    state = State()
    extend(state, entries, distrust, revoked)
    return state


def extend(state: State, entries: Iterable[Entry], distrust: dict[str, int] | None = None, revoked: int = 0) -> None:
    """Add entries that somebody wrote; see `State.apply`.

    Raises:
        LedgerError: one of them does not hold; the message names it.
    """
    for entry in entries:
        try:
            state.apply(entry, distrust, revoked)
        except LedgerError as error:
            if entry.name in str(error):
                raise
            raise type(error)(f"{entry.name}: {error}") from error
