"""Witnesses: what shows that a ledger was cut short or forked.

A signed chain whose end is taken off still holds. So its length and head are written, signed by a key that cannot
write the ledger, to a place where nothing is ever overwritten: a folder, or a bucket with object lock. And whoever
reads the ledger keeps a high-water mark, and refuses one that is shorter than it was, or another one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.signer import Key, Signer

from lineage.digests import LineageError, canonical
from lineage.entries import Entry, LedgerError, State, entry_digest, replay
from lineage.signing import open_envelope, sign

CHECKPOINT_TYPE = "application/vnd.triptych.checkpoint+json"
RETENTION = timedelta(days=3650)
"""How long a bucket keeps a checkpoint from being removed."""


class Checkpoint(BaseModel):
    """How long a ledger was at a time, and its head."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ledger: str
    size: int
    head: str
    time: str


class Witness(Protocol):
    """Where checkpoints are kept."""

    def write(self, name: str, content: bytes) -> None:
        """Keep ``content``; what is there already stays."""
        ...

    def read(self) -> dict[str, bytes]:
        """All checkpoints, by name."""
        ...


class FileWitness:
    """A folder, best on another machine's disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        except FileExistsError:
            return
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)

    def read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob("*.json"))}


class S3Witness:
    """A bucket with object lock: ``s3://bucket/prefix``. Credentials and endpoint come from the AWS environment."""

    def __init__(self, uri: str) -> None:
        import boto3

        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")
        self.client = boto3.client("s3")

    def write(self, name: str, content: bytes) -> None:
        self.client.put_object(
            Bucket=self.bucket,
            Key=f"{self.prefix}/{name}",
            Body=content,
            ObjectLockMode="COMPLIANCE",
            ObjectLockRetainUntilDate=datetime.now(UTC) + RETENTION,
        )

    def read(self) -> dict[str, bytes]:
        # The first version of each: a later one under the same name is somebody's attempt to write over it.
        first: dict[str, dict[str, str]] = {}
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        versions = [version for page in pages for version in page.get("Versions", [])]
        for version in sorted(versions, key=lambda version: version["LastModified"], reverse=True):
            first[version["Key"]] = {"Key": version["Key"], "VersionId": version["VersionId"]}
        return {
            key.rsplit("/", 1)[-1]: self.client.get_object(Bucket=self.bucket, **which)["Body"].read()
            for key, which in sorted(first.items())
        }


def open_witness(uri: str) -> Witness:
    """The witness at ``uri``: a folder or ``s3://bucket/prefix``."""
    return S3Witness(uri) if uri.startswith("s3://") else FileWitness(Path(uri.removeprefix("file://")))


def checkpoint(state: State, witness: Witness, signer: Signer) -> Checkpoint:
    """Tell the witness how long the ledger is now."""
    made = Checkpoint(
        ledger=state.ledger,
        size=state.size,
        head=state.head,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    content = sign(canonical(made.model_dump()), CHECKPOINT_TYPE, signer)
    witness.write(f"{state.ledger}-{state.size:010d}.json", content)
    return made


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


def latest_checkpoint(witness: Witness, state: State) -> Checkpoint | None:
    """The furthest checkpoint of this ledger that the witness has.

    Raises:
        LineageError: one of them does not hold.
    """
    read = [_told(name, content, state) for name, content in witness.read().items() if name.startswith(state.ledger)]
    return max((found for found in read if found), key=lambda found: found.size, default=None)


def _told(name: str, content: bytes, state: State) -> Checkpoint | None:
    """What a checkpoint says; None where a revoked key signed it, whose word is neither proof nor alarm."""
    try:
        return read_checkpoint(content, witness_keys(state))
    except LineageError as error:
        revoked = [k.key for k in state.keys.values() if k.role == "witness" and k.distrusted is not None]
        try:
            read_checkpoint(content, revoked)
        except LineageError:
            raise LedgerError(f"checkpoint {name}: {error}") from error
        return None


def verify_entries(entries: Sequence[Entry], root: str, seen: Path | None) -> list[str]:
    """Check exported entries, with nothing but the root key's id; says in words what holds and what is not proven.

    Args:
        seen: a checkpoint of the witness, or a folder of them.

    Raises:
        LineageError: something does not hold; the message names it.
    """
    state = replay(entries)
    if not entries or entries[0].key != root:
        raise LedgerError(
            f"the export was not opened by root key {root[:12]}, but by {entries[0].key[:12]}"
            if entries
            else "the export is empty"
        )
    said = [f"{state.size} entries: chain, signatures and rules hold; opened by root key {root[:12]}"]
    said += [f"entry {index} does not count: {why}" for index, why in state.void.items()]
    said += [f"{name} is dated before the entry it follows" for name in state.clock_steps]
    if seen is None:
        return [*said, f"consistent up to entry {state.size - 1}; completeness not proven: give a --checkpoint"]
    latest = latest_checkpoint(FileWitness(seen), state) if seen.is_dir() else None
    if seen.is_file():
        latest = read_checkpoint(seen.read_bytes(), witness_keys(state))
    if latest is None:
        raise LedgerError(f"{seen} holds no checkpoint of ledger {state.ledger}")
    check_against(entries, latest, "the witness")
    said.append(f"complete up to entry {latest.size - 1}, as the witness saw at {latest.time}")
    if latest.size < state.size:
        said.append(f"entries {latest.size} to {state.size - 1} came after it: nothing shows that none followed them")
    return said


def witness_keys(state: State) -> list[Key]:
    """The keys that may sign checkpoints of this ledger."""
    return [known.key for known in state.keys.values() if known.role == "witness" and known.distrusted is None]


def check_against(entries: Sequence[Entry], seen: Checkpoint, who: str) -> None:
    """Check that a ledger goes on from what was seen of it before.

    Args:
        who: whose memory ``seen`` is, for the message.

    Raises:
        LedgerError: it is another ledger, shorter, or its history was rewritten.
    """
    ours = entries[0].ledger if entries else ""
    if ours != seen.ledger:
        raise LedgerError(f"this is ledger {ours or 'nothing'}, {who} knows {seen.ledger}: it was replaced")
    if len(entries) < seen.size:
        raise LedgerError(
            f"the ledger has {len(entries)} entries, {who} saw {seen.size} at {seen.time}: "
            f"entries {len(entries)} to {seen.size - 1} were taken off its end"
        )
    if entry_digest(entries[seen.size - 1]) != seen.head:
        raise LedgerError(
            f"entry {seen.size - 1} is not the one that {who} saw at {seen.time}: the ledger was rewritten or forked"
        )


class HighWaterMark:
    """What one reader of a ledger saw of it last, in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, entries: Sequence[Entry], state: State) -> None:
        """Refuse a ledger that is older than, or not the one, seen before; then remember this one.

        Raises:
            LedgerError: it is; or the mark cannot be read or written.
        """
        try:
            if self.path.exists():
                check_against(entries, Checkpoint.model_validate_json(self.path.read_bytes()), f"the mark {self.path}")
            made = Checkpoint(ledger=state.ledger, size=state.size, head=state.head, time=state.time)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(made.model_dump()) + "\n", "utf-8")
            partial.replace(self.path)
        except (OSError, ValidationError) as error:
            raise LedgerError(f"the high-water mark {self.path} cannot be used: {error}") from error
