"""Lineage on one machine: a ledger in a file, and all keys in one folder.

One process holds every key here, so the ledger shows what was done, not that different people did it. In a cluster
the governed server alone holds the promotion key, and the root key is kept offline.
"""

from __future__ import annotations

import getpass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lineage.digests import LineageError
from lineage.entries import KeyRevoked, KeyRotated
from lineage.ledger import Ledger
from lineage.promotion import Promotions, Vigil
from lineage.records import RunContext
from lineage.registry import Registry
from lineage.signing import ROLES, SCHEME, key_facts, make_keys, open_signer, read_public
from lineage.witness import Checkpoint, FileWitness, HighWaterMark, checkpoint


class LineageSettings(BaseModel):
    """What is told to others while a run goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    openlineage: str | None = None
    """Where OpenLineage events go: an ``http(s)://`` address or a file. None: a file in the work folder."""


class Embedded:
    """The ledger and keys in ``folder``, made where missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.keys = self.folder / "keys"
        self.url = f"sqlite:///{self.folder / 'ledger.db'}"
        self.witness = FileWitness(self.folder / "witness")

    def open(self, reader: str = "pipeline") -> Ledger:
        """The ledger, checked against what ``reader`` saw of it before.

        Raises:
            LineageError: it does not hold, or the keys of a ledger that is there are gone.
        """
        if (self.folder / "ledger.db").exists() and not (self.keys / "root.pub").exists():
            raise LineageError(f"{self.keys} has no root.pub, so the ledger beside it cannot be checked; restore it")
        if (self.keys / "root.pub").exists() and not (self.folder / "ledger.db").exists():
            raise LineageError(
                f"the ledger {self.folder / 'ledger.db'} is gone; restore it (its keys are in {self.keys})"
            )
        public = make_keys(self.keys)
        seen = any(self.folder.glob("marks/*.json")) or bool(self.witness.read())
        ledger = Ledger.open(self.url, public, open_signer(self.uri("root")), seen)
        HighWaterMark(self.folder / "marks" / f"{reader}.json").check(ledger.all, ledger.state)
        return ledger

    def uri(self, role: str) -> str:
        """Where a role's private key is."""
        return f"{SCHEME}{self.keys / f'{role}.pem'}"

    @property
    def root(self) -> str:
        """Id of the root key."""
        return str(read_public(self.keys / "root.pub").keyid)

    def context(self, run: str, records: str, tracking_uri: str, **more: str) -> RunContext:
        """The run context of steps that use this ledger directly."""
        return RunContext(
            id=run,
            records=records,
            tracking_uri=tracking_uri,
            ledger=self.url,
            root=self.root,
            keys={role: self.uri(role) for role in ("run", "gate", "promotion", "witness")},
            witness=str(self.witness.folder),
            user=local_user(),
            **more,
        )

    def checkpoint(self) -> Checkpoint:
        """Tell the witness how long the ledger is now."""
        ledger = self.open()
        return checkpoint(ledger.state, self.witness, open_signer(self.uri("witness")))

    def rotate(self, role: str) -> str:
        """Replace a role's key, on the word of the old one; gives the new key's id.

        Raises:
            LineageError: there is no such role, or its key does not count any more.
        """
        return self._replace(role, self.uri(role))

    def revoke(self, role: str, since: int, reason: str) -> str:
        """Revoke a role's key from entry ``since`` on and replace it, on the word of the root; gives the new id."""
        ledger, root = self.open(), open_signer(self.uri("root"))
        key = read_public(self.keys / f"{role}.pub").keyid
        ledger.append(KeyRevoked(key=key, since=since, reason=reason), root)
        return self._replace(role, self.uri("root"))

    def _replace(self, role: str, signer: str) -> str:
        if role not in ROLES or role == "root":
            raise LineageError(f"there is no {role} key to replace; there are {', '.join(ROLES[1:])}")
        ledger, by = self.open(), open_signer(signer)
        old = read_public(self.keys / f"{role}.pub")
        made = make_keys(self.keys / "new", [role])[role]
        ledger.append(KeyRotated(of=role, old=old.keyid, new=key_facts(made)), by)
        for suffix in ("pem", "pub"):
            path = self.keys / f"{role}.{suffix}"
            path.rename(path.with_name(f"{role}-{old.keyid[:8]}.{suffix}.old"))
            (self.keys / "new" / path.name).rename(path)
        return str(made.keyid)

    def promotions(self, registry: Registry, reader: str = "pipeline") -> Promotions:
        """Moves of a model's champion, decided here."""
        ledger = self.open(reader)
        vigil = Vigil(self.witness, open_signer(self.uri("witness")))
        return Promotions(ledger, open_signer(self.uri("promotion")), registry, vigil)


def local_user() -> str:
    """How the ledger calls somebody at this machine: nobody checked who it is."""
    return f"{getpass.getuser()} (local, unauthenticated)"
