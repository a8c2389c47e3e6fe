"""The rules of the ledger: which entry may follow.

They are checked where an entry is written and again wherever the ledger is read: a promotion without a verdict for
exactly these weights against exactly this incumbent is refused here, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from lineage import entries as kinds
from lineage.clock import written
from lineage.digests import LineageError
from lineage.entries import BusyError, Entry, LedgerError, Moved, StaleError, entry_digest
from lineage.policy import policy_digest
from lineage.signing import ROLES, Role, check_signature, read_key
from lineage.state import Champion, KnownKey, State

LONGEST_LEASE = timedelta(days=7)


def replay(entries: Iterable[Entry]) -> State:
    """Check a whole ledger and give the state that it adds up to.

    What a key signed from the entry on from which it was distrusted is checked for its place and signature, and then
    left out of the state.

    Raises:
        LedgerError: it does not hold; the message names the entry.
    """
    entries, distrust, revoked = list(entries), dict[str, int](), 0
    for entry in entries:
        if isinstance(body := entry.body, kinds.KeyRevoked):
            distrust[body.key] = min(body.since, distrust.get(body.key, body.since))
            revoked = entry.index
    state = State()
    extend(state, entries, distrust, revoked)
    return state


def extend(state: State, entries: Iterable[Entry], distrust: dict[str, int] | None = None, revoked: int = 0) -> None:
    """Check the next entries and add them.

    Args:
        distrust: key id -> index from which its entries are skipped, from revocations further on.
        revoked: index of the last revocation. An entry before it that breaks a rule because another one does not
            count does not count either; an entry after it was checked against what counts, and is refused.

    Raises:
        LedgerError: one of them does not follow, is not signed by a key that counts, or breaks a rule.
    """
    for entry in entries:
        try:
            _check_place(state, entry)
            signed = _check_signature(state, entry)
            _count(state, entry, distrust or {}, revoked)
        except LineageError as error:
            kind = type(error) if isinstance(error, LedgerError) else LedgerError
            told = str(error) if entry.name in str(error) else f"{entry.name}: {error}"
            raise kind(told) from error
        if entry.time < state.time:
            state.clock_steps.append(entry.name)
        state.ledger, state.size, state.time = entry.ledger, entry.index + 1, entry.time
        state.head = entry_digest(entry, signed)


def _check_place(state: State, entry: Entry) -> None:
    if entry.index != state.size:
        raise LedgerError(f"{entry.name} follows entry {state.size - 1}: one is missing, repeated or out of order")
    if entry.previous != state.head:
        raise LedgerError(f"{entry.name} does not follow the entry before it: one of the two was changed")
    if state.size and entry.ledger != state.ledger:
        raise LedgerError(f"{entry.name} belongs to ledger {entry.ledger}, not to {state.ledger}")


def _check_signature(state: State, entry: Entry) -> bytes:
    """What a key that may say this signed; it is put together once all that costs less was looked at."""
    known, body, by = state.keys.get(entry.key), entry.body, entry.key[:12]
    if not state.size and isinstance(body, kinds.Opened) and "root" in body.keys:
        known = KnownKey(role="root", facts=body.keys["root"], since=0)
    if known is None or known.key.keyid != entry.key:
        raise LedgerError(f"{entry.name} is signed by key {by}, which this ledger does not know")
    if known.until is not None:
        raise LedgerError(f"{entry.name} is signed by key {by}, which entry {known.until} retired")
    own = isinstance(body, kinds.KeyRotated) and entry.key == body.old
    if known.role not in body.roles and not own:
        allowed = " or ".join(body.roles)
        raise LedgerError(f"{entry.name} is signed by a {known.role} key; only a {allowed} key may say this")
    if not check_signature(known.key, entry.signature, signed := entry.signed_bytes()):
        raise LedgerError(f"{entry.name} was changed: its signature does not hold")
    return signed


def _count(state: State, entry: Entry, distrust: dict[str, int], revoked: int) -> None:
    body = entry.body
    if entry.index >= distrust.get(entry.key, entry.index + 1):
        _leave_out(state, entry, f"its key {entry.key[:12]} was revoked from entry {distrust[entry.key]} on")
        if isinstance(body, kinds.KeyRotated):
            # The successor that a revoked key named is known, so that its entries can be told, and never counts.
            successor = _rotate(state, body, entry.index)
            successor.distrusted = distrust[successor.key.keyid] = entry.index
        return
    try:
        _enter(state, entry)
    except LedgerError as error:
        if not state.void or entry.index >= revoked:
            raise
        _leave_out(state, entry, str(error))  # it rests on an entry that does not count


def _leave_out(state: State, entry: Entry, why: str) -> None:
    state.void[entry.index] = why
    if isinstance(moved := entry.body, Moved):
        state.moved[moved.model] = entry.index
        if moved.action == "withdraw":
            # Withdrawn for law or consent: no lost key brings the weights back.
            state.withdrawn.add(moved.candidate)


def _enter(state: State, entry: Entry) -> None:
    match entry.body:
        case kinds.Opened() as body:
            if state.size or set(body.keys) != set(ROLES):
                raise LedgerError(f"it must come first, and name one key for each of {', '.join(ROLES)}")
            for role in ROLES:
                _add_key(state, role, body.keys[role], entry.index)
        case kinds.KeyRotated() as body:
            _rotate(state, body, entry.index)
        case kinds.KeyRevoked() as body:
            _revoke(state, body, entry.index)
        case kinds.PolicySet() as body:
            if policy_digest(body.evaluation, body.gate) != body.digest:
                raise LedgerError("its digest is not that of the settings it names")
            state.policies[body.model] = body
        case kinds.Leased() as body:
            _lease(state, body, entry.time)
        case kinds.Recorded() as body:
            state.records.setdefault(body.run, {})[body.step] = body.record
        case kinds.Judged() as body:
            if state.verdicts.setdefault(body.verdict, body) != body:
                raise LedgerError("the ledger says something else of this verdict already")
        case kinds.Registered() as body:
            _register(state, body)
        case Moved() as body:
            _move(state, body, entry.index)
        case kinds.Closed() as body:
            state.outcomes[body.run] = body.outcome
            state.leases = {model: lease for model, lease in state.leases.items() if lease.run != body.run}


def _add_key(state: State, role: Role, facts: dict[str, Any], since: int) -> KnownKey:
    key = read_key(facts)
    if key.keyid in state.keys:
        raise LedgerError(f"key {key.keyid[:12]} is known already")
    state.keys[key.keyid] = known = KnownKey(role=role, facts=facts, since=since)
    return known


def _rotate(state: State, body: kinds.KeyRotated, index: int) -> KnownKey:
    old = state.keys.get(body.old)
    if old is None or old.role != body.of:
        raise LedgerError(f"{body.old[:12]} is no {body.of} key")
    made = _add_key(state, body.of, body.new, index)
    old.until = index if old.until is None else old.until
    return made


def _revoke(state: State, body: kinds.KeyRevoked, index: int) -> None:
    known = state.keys.get(body.key)
    if known is None or known.role == "root":
        raise LedgerError(f"{body.key[:12]} is no key that can be revoked")
    known.distrusted = min(body.since, known.distrusted if known.distrusted is not None else body.since)
    state.revoked = index
    for distrusted in state.keys.values():
        if distrusted.distrusted is not None and distrusted.until is None:
            distrusted.until = index


def _lease(state: State, body: kinds.Leased, time: str) -> None:
    holder = state.leases.get(body.model)
    if holder and holder.run != body.run and time < holder.expires:
        told = f"run {holder.run} has {body.model} to itself until {holder.expires}"
        raise BusyError(f"{told}; wait for it to end, or close it")
    try:
        expires = datetime.fromisoformat(body.expires)
        length = expires - datetime.fromisoformat(time)
        if written(expires) != body.expires:
            raise ValueError("write it as entries write theirs")
    except (ValueError, TypeError, OverflowError) as error:
        raise LedgerError(f"the lease expires at no time: {error}") from error
    if length > LONGEST_LEASE:
        raise LedgerError(f"a lease of {length} is longer than {LONGEST_LEASE}")
    state.leases[body.model] = body


def _register(state: State, body: kinds.Registered) -> None:
    judged = state.verdicts.get(body.verdict)
    if judged is None or judged.candidate != body.candidate:
        raise LedgerError(f"no verdict in the ledger is about these weights ({body.candidate[:24]}…)")
    if (judged.run, judged.model) != (body.run, body.model):
        raise LedgerError("its verdict was given in another run, or for another model")
    if state.versions.setdefault(body.model, {}).setdefault(body.version, body) != body:
        raise LedgerError(f"{body.name} is in the ledger with other evidence, which never changes: register a new one")


def _move(state: State, body: Moved, index: int) -> None:
    check_move(state, body)
    state.moved[body.model] = index
    if body.action == "withdraw":
        state.withdrawn.add(body.candidate)
        return
    champion = Champion(version=body.version, candidate=body.candidate, entry=index)
    state.champions.setdefault(body.model, []).append(champion)
    state.used.add(body.verdict)
    if not body.run:
        state.approved.setdefault(body.model, []).append(champion)


def check_move(state: State, move: Moved) -> None:
    """Whether the champion may move so now.

    Raises:
        StaleError: the champion is another one than the mover, or the verdict, believes.
        LedgerError: it may not for another reason.
    """
    what, champion = f"version {move.version} of {move.model}", state.champion(move.model)
    if move.previous_version != (champion.version if champion else "") or (
        champion and champion.candidate != move.previous
    ):
        now = f"version {champion.version} ({champion.candidate[:24]}…)" if champion else "none"
        raise StaleError(f"stale: the champion of {move.model} is {now}, expected {move.previous[:24]}…")
    registered = state.registered(move.model, move.version)
    if registered is None or registered.candidate != move.candidate:
        raise LedgerError(f"{what} was not registered with the weights {move.candidate[:24]}…")
    if move.candidate in state.withdrawn:
        raise LedgerError(f"{what} was withdrawn and can never be champion again")
    former = any(past.version == move.version for past in state.champions.get(move.model, []))
    if move.action == "promote":
        if former or move.verdict in state.used:
            raise LedgerError(f"{what} was champion before; going back needs a reason: triptych rollback")
        _check_verdict(state, move, what)
    elif not move.reason.strip():
        raise LedgerError(f"{move.action} needs a reason")
    if move.action == "rollback" and not former:
        raise LedgerError(f"{what} was never champion; a rollback goes to one that was")


def _check_verdict(state: State, move: Moved, what: str) -> None:
    judged, policy = state.verdicts.get(move.verdict), state.policies.get(move.model)
    if judged is None or judged.candidate != move.candidate or judged.model != move.model:
        raise LedgerError(f"no verdict of the gate is about {what} and its weights")
    if judged.decision != "promote":
        raise LedgerError(f"the gate's verdict on {what} is {judged.decision}, not promote")
    if policy is None or policy.digest != judged.policy:
        pinned = f"{policy.digest[:19]}…" if policy else "none"
        told = f"was given under policy {judged.policy[:19]}…, and the ledger pins {pinned} for {move.model}"
        raise LedgerError(f"the verdict on {what} {told}; judge it under that one, or change it: triptych policy set")
    if judged.incumbent != move.previous:
        told = f"was given against {judged.incumbent[:24]}…, the champion is {move.previous[:24]}…"
        raise StaleError(f"stale: the verdict on {what} {told}; run again to judge it anew")
    known = {version.candidate for version in state.versions[move.model].values()}
    if not move.previous_version and judged.incumbent in known:
        raise StaleError(f"stale: the verdict on {what} was given against a former champion")
