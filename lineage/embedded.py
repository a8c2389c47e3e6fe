"""Lineage on one machine: a ledger in a file, and all keys in one folder.

    home = Embedded(Path(".triptych/lineage"))
    home.open().state.champion("portraits")

One process holds every key here, so the ledger shows what was done, not that different people did it. In a cluster
the governed server alone holds the promotion key, and the root key is kept offline. It may be kept offline here too:
``root.pem`` is only read to open a new ledger, to revoke a key and to say which keys the channel trusts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from lineage.channel.publisher import init
from lineage.digests import LineageError
from lineage.entries import KeyRevoked, KeyRotated, PolicySet
from lineage.files import exclusive, write_whole
from lineage.ledger import Ledger, open_database
from lineage.memory import Memory
from lineage.moves import Mover, open_mover
from lineage.policy import changes, policy_digest
from lineage.records import RunContext, account
from lineage.registry import Registry
from lineage.signing import ROLES, SCHEME, Role, key_facts, make_keys, open_signer, read_public
from lineage.witness import FileWitness, WitnessWriter


class Embedded:
    """The ledger, its keys, marks and witness, and the channel, in ``folder``; made where missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.keys = self.folder / "keys"
        self.marks = self.folder / "marks"
        self.channel = self.folder / "channel"
        self.channel_root = self.folder / "channel-root.json"
        """What a client of the channel begins to trust it with; hand it on by a way of its own."""
        self.url = f"sqlite:///{self.folder / 'ledger.db'}"
        self.witness = FileWitness(self.folder / "witness")

    def open(self, reader: str = "pipeline") -> Ledger:
        """The ledger, checked against what ``reader`` saw of it before.

        Raises:
            LineageError: it does not hold, or the keys of a ledger that is there are gone.
        """
        database = self.folder / "ledger.db"
        if database.exists() and not (self.keys / "root.pub").exists():
            raise LineageError(f"{self.keys} has no root.pub, so the ledger beside it cannot be checked; restore it")
        if not any(self.marks.glob("*.json")) and not any(True for _ in self.witness.read()):
            with exclusive(self.folder / "lock"):
                open_database(self.url, make_keys(self.keys), lambda: open_signer(self.uri("root")))
        elif not database.exists():
            raise LineageError(f"the ledger {database} is gone; restore it (its keys are in {self.keys})")
        own = open_signer(self.uri("run")) if (self.keys / "run.pem").exists() else None  # perhaps it is kept elsewhere
        ledger = Ledger.open(self.url, self.root, Memory(self.marks, reader, own))
        ledger.refresh()
        self._finish_rotation(ledger)
        if not self.channel_root.exists() and self.holds_root:
            self.init_channel(ledger)
        return ledger

    def init_channel(self, ledger: Ledger | None = None, place: str = "") -> bytes:
        """Make a channel, or have it trust the keys that count now, on the word of the root key.

        Args:
            ledger: whose keys it trusts; None: this one's.
            place: a folder or ``s3://bucket/prefix``; empty: this home's own.

        Returns:
            What its clients begin to trust it with.

        Raises:
            LineageError: the root's private key is not here, or the channel is another root's.
        """
        ledger = ledger or self.open()
        roles: tuple[Role, ...] = ("promotion", "witness")
        keys = {role: ledger.state.key_of(role) for role in roles}
        made = init(place or str(self.channel), keys, ledger.signer("root", self.uri("root")))
        if not place:
            write_whole(self.channel_root, made, 0o644)
        return made

    @property
    def holds_root(self) -> bool:
        """Whether the root's private key is here, and not kept offline."""
        return (self.keys / "root.pem").exists()

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
            marks=str(self.marks),
            channel=str(self.channel),
            user=local_user(),
            **more,
        )

    def set_policy(self, model: str, evaluation: Mapping[str, Any], gate: Mapping[str, Any], reason: str) -> list[str]:
        """Pin a model's policy where the ledger pins another one; says in words what changed.

        Args:
            evaluation, gate: the two sections, as `lineage.policy.policy_digest` takes them.
        """
        ledger, sections = self.open(), {"evaluation": dict(evaluation), "gate": dict(gate)}
        if said := changes(ledger.state.policies.get(model), **sections):
            said_by = {"model": model, "user": local_user(), "reason": reason}
            body = PolicySet.model_validate({**said_by, **sections, "digest": policy_digest(**sections)})
            ledger.append(body, ledger.signer("promotion", self.uri("promotion")))
        return said

    def checkpoint(self) -> int:
        """Tell the witness how long the ledger is now; gives its size."""
        ledger = self.open()
        writer = WitnessWriter(self.witness, ledger.signer("witness", self.uri("witness")))
        return writer.write(ledger.state).size

    def rotate(self, role: Role) -> str:
        """Replace a role's key, on the word of the old one; gives the new key's id.

        Raises:
            LineageError: there is no such role, or its key does not count any more.
        """
        return self._replace(role, open_signer(self.uri(role)))

    def revoke(self, role: Role, since: int, reason: str) -> str:
        """Revoke a role's key from entry ``since`` on and replace it, on the word of the root; gives the new id."""
        _check_replaceable(role)
        ledger, root = self.open(), open_signer(self.uri("root"))
        key = read_public(self.keys / f"{role}.pub").keyid
        ledger.append(KeyRevoked(key=key, since=since, reason=reason), root)
        return self._replace(role, root)

    def mover(self, registry: Registry, reader: str = "pipeline", artifacts: Path | None = None) -> Mover:
        """Moves of a model's champion by a person, decided here; see `lineage.moves.open_mover`."""
        ledger = self.open(reader)
        return open_mover(self.context("", "", registry.tracking_uri), registry, ledger, artifacts)

    def _replace(self, role: Role, by: Signer) -> str:
        _check_replaceable(role)
        ledger, old = self.open(), read_public(self.keys / f"{role}.pub")
        if (self.keys / "new").exists():
            shutil.rmtree(self.keys / "new")  # of a rotation that died before its entry, or a stranger's
        made = make_keys(self.keys / "new", [role])[role]
        ledger.append(KeyRotated(of=role, old=old.keyid, new=key_facts(made)), by)
        self._finish_rotation(ledger)
        return str(made.keyid)

    def _finish_rotation(self, ledger: Ledger) -> None:
        """Put new keys that the ledger already names in their place, also where a rotation died before it did."""
        for shown in sorted((self.keys / "new").glob("*.pub")):
            role, new = shown.stem, read_public(shown)
            known = ledger.state.keys.get(new.keyid)
            if known is None or known.role != role or known.until is not None:
                continue  # its entry was never written, or it is no key for this role
            open_signer(f"{SCHEME}{shown.with_suffix('.pem')}", new)
            for suffix in ("pem", "pub"):
                made, path = self.keys / "new" / f"{role}.{suffix}", self.keys / f"{role}.{suffix}"
                if made.exists():
                    if path.exists():
                        path.rename(path.with_name(f"{role}-{ledger.state.size}.{suffix}.old"))
                    made.rename(path)


def _check_replaceable(role: str) -> None:
    if role not in ROLES or role == "root":
        raise LineageError(f"there is no {role} key to replace; there are {', '.join(ROLES[1:])}")


def local_user() -> str:
    """How the ledger calls somebody at this machine: nobody checked who it is."""
    return f"{account()} (local, unauthenticated)"
