"""What the entries of a ledger add up to."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from securesystemslib.signer import Key

from lineage.entries import Judged, Leased, LedgerError, PolicySet, Registered
from lineage.signing import Role, read_key

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

    @cached_property
    def key(self) -> Key:
        """The public key."""
        return read_key(self.facts)

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


def _whole_set(evaluation: str) -> str:
    return ":".join(evaluation.split(":")[:2])
