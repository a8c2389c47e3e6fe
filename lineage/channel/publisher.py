"""Making a channel and publishing to it.

A publication writes the documents, then targets, then the snapshot, all under names of their own, and timestamp.json
last: until that one is swapped, clients read the whole previous state. Nothing refers to what a crash left, and the
next publication goes past it. Old files are kept: a move leaves a few kilobytes, and old roots lead to the new one.

One number counts targets, snapshots and timestamps. It is the time in seconds since 1970, or one more than the last
one, so it does not go back even where a place lost what it had.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from lineage.channel.champion import CHAMPION, Champion
from lineage.channel.errors import ChannelError, UnreachableError, in_words
from lineage.channel.places import Place, open_place, read
from lineage.faults import boundary
from lineage.files import exclusive, write_whole
from lineage.signing import Role

LONG = timedelta(days=3650)
"""Life of root, targets and snapshot: whether they are fresh is the timestamp's matter."""
TRIES = 10
"""How often to begin again where another publisher was faster."""
SIGNED = (Targets.type, Snapshot.type, Timestamp.type)
TIMESTAMP = "metadata/timestamp.json"
T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class _Said:
    """What a channel says."""

    number: int = 0
    snapshot: MetaFile | None = None
    targets: dict[str, TargetFile] = field(default_factory=dict)


class Publisher:
    """Publishes to the channel at ``place``, for whoever holds the promotion and the witness key.

    Several may publish to one place: one after the other, by compare and swap. An S3 store that ignores conditional
    writes lets the last one win; publishing again repairs.

    Args:
        place: a path, ``file:///…`` or ``s3://bucket/prefix``, where `init` made a channel.
        life: how long a timestamp is good for; renew it well before.
        mark: a file on this machine that remembers the number published last. Without it, whoever can write to the
            place can put an older state back and have the next heartbeat sign it.
    """

    def __init__(
        self, place: str, promotion: Signer, witness: Signer, life: timedelta, mark: Path | None = None
    ) -> None:
        self.name, self.place = place, open_place(place)
        self.promotion, self.witness, self.life, self.mark = promotion, witness, life, mark
        # Not the root that lies there: who writes to the place may have put it there.
        self.root = _root(promotion.public_key, promotion.public_key, witness.public_key)

    def publish(self, champion: Champion, documents: Mapping[str, bytes], renew: bool = True) -> list[str]:
        """Say who is champion of a model, with its ``documents`` by name; other models stay as they are.

        Where the channel says so already, only the timestamp is renewed: the heartbeat. What was put back, is damaged
        or not signed by these keys is not taken over: the channel begins anew, and tells of other models when they are
        published.

        Args:
            renew: also where nothing changes, for another `life`.

        Returns:
            In words, what was changed and why.

        Raises:
            ChannelError: there is no channel at the place, its root names other keys, or it cannot be written.
        """
        files: dict[str, TargetFile] = {}
        with in_words(self.name):
            for name, content in {**documents, CHAMPION: champion.content()}.items():
                file = files[f"{champion.model}/{name}"] = TargetFile.from_data(f"{champion.model}/{name}", content)
                if name == CHAMPION:
                    file.unrecognized_fields["custom"] = {"withdrawn": list(champion.withdrawn)}
                path = f"targets/{file.get_prefixed_paths()[0]}"
                if (lying := read(self.place, path)) != content:
                    self.place.swap(path, lying, content)
            boundary("channel-documents")
            return self._advance(champion, files, renew)

    def _advance(self, champion: Champion, files: dict[str, TargetFile], renew: bool) -> list[str]:
        """Write the next timestamp and, where what is said of a model changes, what it refers to."""
        newest, model = _newest_root(self.place), champion.model
        if newest is None or any(newest.signed.roles[role] != self.root.roles[role] for role in SIGNED):
            raise ChannelError(f"{self.name} is no channel of these two keys; make it one: triptych channel init")
        for attempt in range(TRIES):
            changes, lying = [], read(self.place, TIMESTAMP)
            try:
                said = self._said(lying)
            except UnreachableError:
                raise
            except ChannelError as error:
                changes, said = [f"{error}; the channel begins anew, publish other models again"], _Said()
            wanted = {path: file for path, file in said.targets.items() if path.partition("/")[0] != model} | files
            # A number may be taken by what a crash or a slower publisher left.
            number = max(said.number + 1, self._marked() + 1, int(time.time())) + 2**attempt - 1
            snapshot = said.snapshot
            if wanted != said.targets:
                who = f"version {champion.version}" if champion.version else "no version"
                changes.append(f"channel: {who} is champion of {model}")
                snapshot = self._follow(number, wanted)
            elif not renew:
                return changes
            if snapshot and self._stamp(number, snapshot, lying):
                return changes
        raise ChannelError(f"others publish to the channel {self.name} all the time; try again")

    def _follow(self, number: int, wanted: dict[str, TargetFile]) -> MetaFile | None:
        """Write targets and snapshot ``number``; None where that number is taken."""
        expires = datetime.now(UTC) + LONG
        targets = _signed(Targets(number, expires=expires, targets=wanted), self.promotion)
        if not self.place.swap(f"metadata/{number}.targets.json", None, targets):
            return None
        boundary("channel-targets")
        meta = {"targets.json": MetaFile.from_data(number, targets, ["sha256"])}
        snapshot = _signed(Snapshot(number, expires=expires, meta=meta), self.promotion)
        if not self.place.swap(f"metadata/{number}.snapshot.json", None, snapshot):
            return None
        boundary("channel-snapshot")
        return MetaFile.from_data(number, snapshot, ["sha256"])

    def _stamp(self, number: int, snapshot: MetaFile, lying: bytes | None) -> bool:
        """Swap the timestamp ``lying`` there for one of ``snapshot``; whether no other publisher was faster."""
        timestamp = Timestamp(number, expires=datetime.now(UTC) + self.life, snapshot_meta=snapshot)
        if not self.place.swap(TIMESTAMP, lying, _signed(timestamp, self.witness)):
            return False
        if self.mark:
            with exclusive(self.mark.with_suffix(".lock")):
                number = max(number, self._marked())
                write_whole(self.mark, f"{number} {number}\n".encode())
        boundary("channel-timestamp")
        return True

    def _said(self, lying: bytes | None) -> _Said:
        """What the channel says, by the timestamp ``lying`` there, checked against these keys and the mark."""
        if lying is None and not self._marked():
            return _Said()
        with in_words(self.name):
            timestamp = self._checked(Timestamp, lying)
            if timestamp.version < self._marked():
                raise ChannelError(f"the channel {self.name} was put back from {self._marked()} to {timestamp.version}")
            content = read(self.place, f"metadata/{timestamp.snapshot_meta.version}.snapshot.json")
            meta = self._checked(Snapshot, content, timestamp.snapshot_meta).meta["targets.json"]
            content = read(self.place, f"metadata/{meta.version}.targets.json")
            return _Said(timestamp.version, timestamp.snapshot_meta, self._checked(Targets, content, meta).targets)

    def _checked(self, kind: type[T], content: bytes | None, named: MetaFile | None = None) -> T:
        if named:
            named.verify_length_and_hashes(content or b"")
        metadata = Metadata[T].from_bytes(content or b"")
        self.root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        return metadata.signed

    def _marked(self) -> int:
        """The number published last, which the mark holds twice, so that a damaged one is no other number."""
        if not self.mark or not self.mark.exists():
            return 0
        try:
            first, second = map(int, self.mark.read_text("ascii").split())
        except ValueError:
            first, second = 0, 1
        if first != second:
            raise ChannelError(f"the mark {self.mark} was damaged; restore it, or remove it")
        return first


def init(place: str, keys: Mapping[Role, Key], root: Signer, life: timedelta = LONG) -> bytes:
    """Make a channel, or have its next root name other keys; where nothing is to be changed, nothing is.

    After a change clients refuse the channel until `Publisher.publish` signed every model anew: what the old keys
    signed is not taken over. The root key itself cannot be rotated: that is another channel.

    Args:
        keys: the public keys of ``promotion`` and ``witness``.
        root: the ledger's root key, needed only here.
        life: how long the root is good for; another half of it is always left.

    Returns:
        The newest ``<n>.root.json``, for clients to begin with.

    Raises:
        ChannelError: the place holds a channel of another root key, or cannot be written.
    """
    now, made = datetime.now(UTC), _root(root.public_key, keys["promotion"], keys["witness"])
    made.expires = now + life
    with in_words(place):
        where = open_place(place)
        for _ in range(TRIES):  # somebody else may write the same root meanwhile
            if newest := _newest_root(where):
                made.verify_delegate(Root.type, newest.signed_bytes, newest.signatures)
                same = (newest.signed.roles, newest.signed.keys) == (made.roles, made.keys)
                if same and not newest.signed.is_expired(now + life / 2):
                    return newest.to_bytes()
                made.version = newest.signed.version + 1
            content = _signed(made, root)
            if where.swap(f"metadata/{made.version}.root.json", None, content):
                return content
    raise ChannelError(f"root {made.version} of the channel {place} cannot be written now; try again")


def _root(root: Key, promotion: Key, witness: Key) -> Root:
    made = Root()
    for role, key in zip((Root.type, *SIGNED), (root, promotion, promotion, witness), strict=True):
        made.add_key(key, role)
    return made


def _newest_root(place: Place) -> Metadata[Root] | None:
    """The last root at a place, unchecked; None where there is none."""
    found, number = None, 1
    while content := read(place, f"metadata/{number}.root.json"):
        found, number = Metadata[Root].from_bytes(content), number + 1
    return found


def _signed(content: T, signer: Signer) -> bytes:
    metadata = Metadata(content)
    metadata.sign(signer)
    return metadata.to_bytes()
