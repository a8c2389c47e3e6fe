"""Witnesses: what shows that a ledger was cut short or forked.

A signed chain whose end is taken off still holds. So its length and head are written, signed by a key that cannot
write the ledger, to a place where nothing is ever overwritten: a folder, or a bucket with object lock.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError
from securesystemslib.signer import Key, Signer

from lineage.clock import now
from lineage.digests import LineageError, canonical, digest_bytes
from lineage.entries import Entry, LedgerError, entry_digest
from lineage.frozen import Frozen
from lineage.rules import replay
from lineage.signing import open_envelope, sign
from lineage.state import State

CHECKPOINT_TYPE = "application/vnd.triptych.checkpoint+json"
RETENTION = timedelta(days=3650)
"""How long a bucket keeps a checkpoint from being removed."""
LARGEST = 64 * 1024
"""Bytes of a checkpoint that are read at most."""


class UnprovenError(LineageError):
    """Neither proof nor alarm."""


class Checkpoint(Frozen):
    """How long a ledger was at a time, and its head."""

    ledger: str
    size: int
    head: str
    time: str

    @classmethod
    def of(cls, state: State) -> Checkpoint:
        """How long a ledger is now."""
        return cls(ledger=state.ledger, size=state.size, head=state.head, time=now())

    @property
    def stem(self) -> str:
        """Its name, up to what tells it from others of the same length."""
        return f"{self.ledger}-{self.size:010d}"


class FileWitness:
    """A folder, best on another machine's disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: bytes) -> bool:
        """Keep ``content``; False where the name is taken. What is there already stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{secrets.token_hex(8)}.partial"
        partial.write_bytes(content)
        partial.chmod(0o444)
        try:
            os.link(partial, self.folder / name)  # whole or not at all, and never over another one
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True

    def read(self, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        """Name and content of all checkpoints whose name begins so, longest ledger first."""
        for path in sorted(self.folder.glob("*.json"), reverse=True):
            if path.name.startswith(prefix):
                regular = path.is_file() and not path.is_symlink()
                yield path.name, _head(path) if regular else b""


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(LARGEST)


class S3Witness:
    """A bucket with object lock: ``s3://bucket/prefix``. Credentials and endpoint come from the AWS environment."""

    def __init__(self, uri: str) -> None:
        import boto3
        from botocore.config import Config

        self.bucket, _, self.folder = uri.removeprefix("s3://").partition("/")
        # A witness that does not answer must not keep the writer of an entry longer than it waits for the ledger.
        limits = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
        self.client = boto3.client("s3", config=limits)

    def write(self, name: str, content: bytes) -> bool:
        """As a folder's; no name is ever taken."""
        self.client.put_object(
            Bucket=self.bucket,
            Key=f"{self.folder}/{name}",
            Body=content,
            ObjectLockMode="COMPLIANCE",
            ObjectLockRetainUntilDate=datetime.now(UTC) + RETENTION,
        )
        return True

    def read(self, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        """As a folder's; names may come repeatedly."""
        # Every version: who may write here can put anything on top, but takes nothing away.
        pages = self.client.get_paginator("list_object_versions")
        listed = pages.paginate(Bucket=self.bucket, Prefix=f"{self.folder}/{prefix}")
        versions = [version for page in listed for version in page.get("Versions", [])]
        for version in sorted(versions, key=lambda version: str(version["Key"]), reverse=True):
            which = {"Bucket": self.bucket, "Key": version["Key"], "VersionId": version["VersionId"]}
            yield version["Key"].rsplit("/", 1)[-1], self.client.get_object(**which)["Body"].read(LARGEST)


Witness = FileWitness | S3Witness


def open_witness(uri: str) -> Witness:
    """The witness at ``uri``: a folder or ``s3://bucket/prefix``."""
    return S3Witness(uri) if uri.startswith("s3://") else FileWitness(Path(uri.removeprefix("file://")))


@dataclass(frozen=True)
class WitnessWriter:
    """Tells the witness how long the ledger is."""

    witness: Witness
    signer: Signer

    def write(self, state: State) -> Checkpoint:
        """Keep a checkpoint, and see that it is there.

        Raises:
            LedgerError: the witness did not keep it.
        """
        made, keys = Checkpoint.of(state), [self.signer.public_key]
        content = sign(canonical(made.model_dump()), CHECKPOINT_TYPE, self.signer)
        if not self.witness.write(f"{made.stem}.json", content):
            # Somebody took the name, perhaps with something else in it.
            self.witness.write(f"{made.stem}-{digest_bytes(content)[7:23]}.json", content)
        for _, kept in self.witness.read(made.stem):
            with suppress(LineageError):
                found = read_checkpoint(kept, keys)
                if (found.ledger, found.size, found.head) == (made.ledger, made.size, made.head):
                    return made
        raise LedgerError(f"the witness did not keep the checkpoint of {made.size} entries; look who may write there")


def read_checkpoint(content: bytes, keys: Sequence[Key]) -> Checkpoint:
    """A checkpoint, its signature checked.

    Raises:
        LineageError: it is malformed or signed by none of ``keys``.
    """
    payload, _ = open_envelope(content, CHECKPOINT_TYPE, keys)
    try:
        return Checkpoint.model_validate_json(payload)
    except ValidationError as error:
        raise LedgerError(f"this is not a checkpoint: {error}") from error


def kept_checkpoint(name: str, content: bytes, state: State) -> Checkpoint:
    """A checkpoint of a ledger that somebody kept under ``name``; empty: under whatever name.

    Raises:
        UnprovenError: a revoked key signed it, or it is of another ledger.
        LineageError: it does not hold.
    """
    witnesses = [known for known in state.keys.values() if known.role == "witness"]
    try:
        found = read_checkpoint(content, [known.key for known in witnesses if known.distrusted is None])
    except LineageError:
        with suppress(LineageError):
            read_checkpoint(content, [known.key for known in witnesses if known.distrusted is not None])
            name = ""
        if not name.startswith(state.ledger):
            told = "it is of another ledger" if name else "a key signed it that was revoked"
            raise UnprovenError(told) from None
        raise
    if name and not name.startswith(found.stem):
        raise LedgerError(f"it is a checkpoint of {found.size} entries of ledger {found.ledger} under another name")
    return found


@dataclass(frozen=True)
class Told:
    """What a witness tells about one ledger."""

    held: list[Checkpoint]
    """The checkpoints that hold, each of which the ledger must go on from."""
    unreadable: dict[str, str]
    """Name of what claims to be a checkpoint of this ledger and does not hold -> why."""

    @property
    def latest(self) -> Checkpoint | None:
        """The furthest one."""
        return max(self.held, key=lambda found: found.size, default=None)


def hear(witness: Witness, state: State, whole: bool = True) -> Told:
    """What a witness tells about a ledger. A revoked key's word is neither proof nor alarm.

    Args:
        whole: read every checkpoint; False: from the furthest one on, until one holds. There may be one an entry.
    """
    told = Told([], {})
    for name, content in witness.read(state.ledger):
        try:
            told.held.append(kept_checkpoint(name, content, state))
            if not whole:
                break
        except UnprovenError:
            continue
        except LineageError as error:
            told.unreadable[name] = str(error)
    return told


def check_against(state: State, digest_at: Callable[[int], str], seen: Checkpoint, who: str) -> None:
    """Check that a ledger goes on from what was seen of it before.

    Args:
        digest_at: gives the digest of the entry at an index.
        who: whose memory ``seen`` is, for the message.

    Raises:
        LedgerError: it is another ledger, shorter, or its history was rewritten.
    """
    if state.ledger != seen.ledger:
        raise LedgerError(f"this is ledger {state.ledger or 'nothing'}, {who} knows {seen.ledger}: it was replaced")
    if state.size < seen.size:
        told = f"the ledger has {state.size} entries, {who} saw {seen.size} at {seen.time}"
        raise LedgerError(f"{told}: entries {state.size} to {seen.size - 1} were taken off its end")
    if (state.head if seen.size == state.size else digest_at(seen.size - 1)) != seen.head:
        told = f"entry {seen.size - 1} is not the one that {who} saw at {seen.time}"
        raise LedgerError(f"{told}: the ledger was rewritten or forked")


def verify_entries(entries: Sequence[Entry], root: str, seen: Path | None) -> list[str]:
    """Check exported entries, with nothing but the root key's id; says in words what holds and what is not proven.

    Args:
        seen: a checkpoint of the witness, or a folder of them.

    Raises:
        LineageError: something does not hold; the message names it.
    """
    state = replay(entries)
    check_root(entries, root)
    said = [f"{state.size} entries: chain, signatures and rules hold; opened by root key {root[:12]}"]
    said += [f"entry {index} does not count: {why}" for index, why in state.void.items()]
    said += [f"{name} is dated before the entry it follows" for name in state.clock_steps]
    if seen is None:
        return [*said, f"consistent up to entry {state.size - 1}; completeness not proven: give a --checkpoint"]
    told = hear(FileWitness(seen), state) if seen.is_dir() else Told([kept_checkpoint("", _head(seen), state)], {})
    for name, why in told.unreadable.items():
        raise LedgerError(f"checkpoint {name}: {why}")
    if (latest := told.latest) is None:
        raise LedgerError(f"{seen} holds no checkpoint of ledger {state.ledger}")
    for found in told.held:
        check_against(state, lambda index: entry_digest(entries[index]), found, "the witness")
    said.append(f"complete up to entry {latest.size - 1}, as the witness saw at {latest.time}")
    if latest.size < state.size:
        said.append(f"entries {latest.size} to {state.size - 1} came after it: nothing shows that none followed them")
    return said


def check_root(entries: Sequence[Entry], root: str) -> None:
    """Refuse entries that another root key opened.

    Raises:
        LedgerError: so it is, or there are none.
    """
    if not entries:
        raise LedgerError("the export is empty")
    if entries[0].key != root:
        raise LedgerError(f"the export was not opened by root key {root[:12]}, but by {entries[0].key[:12]}")
