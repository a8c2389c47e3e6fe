"""The readers that single-bit flips are shown to, see `benchmarks.bit_flips`: what a run left, by who reads it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineage.artifacts import Listed, digest_of, folder_digest, listing
from lineage.channel.client import verify
from lineage.channel.places import Folder
from lineage.channel.places import read as read_place
from lineage.channel.publisher import Publisher
from lineage.database import DatabaseStore
from lineage.digests import LineageError, digest_file
from lineage.embedded import Embedded
from lineage.entries import Registered, entry_digest
from lineage.moves import CHANNEL_LIFE
from lineage.records import StepRecord
from lineage.registry import Registry
from lineage.rules import replay
from lineage.signing import open_signer, read_public
from lineage.witness import Checkpoint, FileWitness, check_against, hear
from pipelines.audit import Sources, audit

KEPT = ("mlflow.db", "artifacts", "lineage", "pipeline/records")
READ = {
    "versions": "SELECT name, version, run_id, source, storage_location FROM model_versions",
    "tags": "SELECT name, version, key, value FROM model_version_tags WHERE key LIKE 'triptych.%'",
    "aliases": "SELECT name, alias, version FROM registered_model_aliases",
    "figures": "SELECT run_uuid, key, value FROM latest_metrics WHERE key LIKE 'gate/%'",
}
"""What is read of MLflow's database about versions."""
Content = Any
"""What a reader gets out of a file, to be compared."""


@dataclass(frozen=True)
class Kind:
    """Files that one reader reads."""

    name: str
    files: dict[Path, Any]
    """File -> what the reader has to know about it."""
    check: Callable[[Path, Any], None]
    """Raises where the reader refuses the file."""
    content: Callable[[Path], Content]
    """What the reader gets out of it, for what it does not refuse."""
    proof: str = "nothing: every bit of it is under a digest"
    """What is compared before and after."""


class Left:
    """What a run left, in a copy at ``root``."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, Embedded(root / "lineage")
        self.read_before = read_registry(root / "mlflow.db")
        self.connections = 0
        self.mlflow_before: list[Any] = []
        self.fetched: set[str] = set()
        """Names that the last reader of the channel asked for."""
        self.entries = DatabaseStore(self.home.url).entries(0)
        self.state = replay(self.entries)
        self.versions = [one for versions in self.state.versions.values() for one in versions.values()]
        self.heads = list(map(entry_digest, self.entries))
        chunks = Folder.chunks

        def noted(folder: Folder, name: str) -> Iterator[bytes]:
            self.fetched.add(name)
            return chunks(folder, name)

        Folder.chunks = noted  # type: ignore[method-assign,assignment]

    def sources(self, fresh: bool = False) -> Sources:
        """As `triptych audit` reads them.

        Args:
            fresh: with a connection to MLflow's database of its own, which knows nothing from before.
        """
        self.connections += fresh
        return Sources(
            self.entries,
            root=self.home.root,
            records=str(self.root / "pipeline" / "records"),
            registry=f"sqlite:///{self.root}/{'./' * self.connections}mlflow.db",
            artifacts=self.root / "artifacts",
            checkpoints=list(self.home.witness.read()),
        )

    def holds(self, version: Registered, fresh: bool = False) -> bool:
        """Whether a whole audit of a version finds nothing wrong."""
        return audit(f"{version.model}/{version.version}", self.sources(fresh)).holds

    def kinds(self) -> list[Kind]:
        """All files, by reader."""
        lineage, records = self.root / "lineage", self.root / "pipeline" / "records"
        steps = {path: path.parent.name for path in sorted(records.rglob("*.json"))}
        witness, marks, public, channel = (
            dict.fromkeys(sorted(path for path in (lineage / name).glob(pattern) if path.is_file()))
            for name, pattern in (
                ("witness", "*.json"),
                ("marks", "*.json"),
                ("keys", "*.pub"),
                ("channel", "[mt]*/**/*"),
            )
        )
        channel |= dict.fromkeys(lineage.glob("channel-root.json"))
        mark = dict.fromkeys(lineage.glob("marks/channel"))
        rows = "the rows of entries; other columns and indexes repeat them, and the rest of the file is free"
        read = "all that is read there of versions; the rest is free, an index, or text for MLflow's pages"
        told = "size and head; the time is only told"
        kept = "what is signed, and the signatures' bytes; where its reader does not fetch a file, that it does not"
        return [
            Kind("ledger", {lineage / "ledger.db": None}, self.check_ledger, read_ledger, rows),
            Kind("MLflow's database", {self.root / "mlflow.db": None}, self.check_registry, self.read_mlflow, read),
            Kind("step records", steps, self.check_record, read_record, "what the record says"),
            *self.stored(),
            Kind("checkpoints", witness, self.check_witness, read_envelope, "the payload and the signatures' bytes"),
            Kind("marks", marks, self.check_mark, read_mark, told),
            Kind("public keys", public, self.check_key, lambda path: read_public(path).keyid, "the key"),
            Kind("channel", channel, self.check_channel, self.read_channel, kept),
            Kind(
                "the channel's mark",
                mark,
                self.check_channels_mark,
                lambda path: path.read_bytes().split(),
                "the number",
            ),
        ]

    def stored(self) -> list[Kind]:
        """What lies in the artifact store, for each version."""
        found: dict[str, dict[Path, Any]] = {}
        for version in self.versions:
            stored = Registry(self.sources().registry, version.model).version(version.version)
            assert stored
            model = Path(stored.source.removeprefix("file://"))
            for one in (files := listing(model)):
                name = "weights" if one.name.startswith("artifacts/weights/") else "around the weights"
                found.setdefault(name, {})[model / one.name] = (files, one, folder_digest, version.folder)
            for name, digest in version.evidence.items():
                place = model.parent / "evidence" / name
                for one in (files := listing(place)):
                    path = place / one.name if one.name else place
                    kind = f"evidence: {'samples' if 'samples' in one.name else name}"
                    found.setdefault(kind, {})[path] = (files, one, digest_of, digest)
        return [Kind(name, files, check_stored, lambda path: path.read_bytes()) for name, files in found.items()]

    def check_ledger(self, path: Path, _: Any) -> None:
        """As `triptych ledger verify` with the witness's checkpoints."""
        entries = DatabaseStore(f"sqlite:///{path}").entries(0)
        state, told = replay(entries), None
        told = hear(self.home.witness, state).latest
        if told:
            check_against(state, lambda index: entry_digest(entries[index]), told, "the witness")
        if state.head != self.state.head:
            raise LineageError("another head")

    def check_registry(self, path: Path, _: Any) -> None:
        """A whole audit of every version of which something changed that is read there."""
        try:
            now = read_registry(path)
        except sqlite3.Error:
            now = {}
        changed = [one for one in self.versions if about(now, one) != about(self.read_before, one)]
        if now.get("aliases") != self.read_before["aliases"]:
            changed += self.versions[-1:]
        if any(not self.holds(one, fresh=not now) for one in changed):
            raise LineageError("an audit names it")

    def read_mlflow(self, path: Path) -> Content:
        """What MLflow itself gives of all versions; it may find in an index what the table has otherwise."""
        if read_registry(path) == self.read_before and self.mlflow_before:
            return self.mlflow_before
        uri, found = self.sources(fresh=True).registry, []
        for one in self.versions:
            registry = Registry(uri, one.model)
            place = registry.client.get_model_version_download_uri(one.model, one.version)
            found += [registry.version(one.version), place, registry.client.get_run(one.mlflow_run).data.metrics]
        self.mlflow_before = self.mlflow_before or found
        return found

    def check_record(self, path: Path, run: str) -> None:
        """As audit and gate compare records."""
        record = StepRecord.model_validate_json(path.read_bytes())
        if record.digest() != self.state.records[run].get(path.stem):
            raise LineageError("another digest")

    def check_witness(self, path: Path, _: Any) -> None:
        """As every reader of the witness."""
        told = hear(FileWitness(path.parent), self.state)
        if path.name in told.unreadable:
            raise LineageError(told.unreadable[path.name])
        if told.latest is None or told.latest.size != self.state.size:
            raise LineageError("the newest checkpoint is gone")

    def check_mark(self, path: Path, _: Any) -> None:
        """As the reader whose mark it is."""
        seen = Checkpoint.model_validate_json(path.read_bytes())
        check_against(self.state, lambda index: self.heads[index], seen, "the mark")

    def check_key(self, path: Path, _: Any) -> None:
        """As whoever needs the key: the ledger names it."""
        if read_public(path).keyid not in self.state.keys:
            raise LineageError("not a key of this ledger")

    def check_channel(self, path: Path, _: Any) -> None:
        """As `triptych channel verify`, by a reader who never saw it."""
        self.fetched.clear()
        verify((self.root / "lineage" / "channel-root.json").read_bytes(), str(self.home.channel))

    def read_channel(self, path: Path) -> Content:
        """A file of the channel; nothing where its reader did not ask for it."""
        anchor = path.name == "channel-root.json"
        if not anchor and path.relative_to(self.home.channel).as_posix() not in self.fetched:
            return "not fetched: newer metadata replaced it, or it repeats the root that its reader has"
        if "targets" in path.relative_to(self.home.folder).parts:
            return path.read_bytes()
        found = json.loads(path.read_bytes())
        return found["signed"], {one["keyid"]: bytes.fromhex(one["sig"]) for one in found["signatures"]}

    def check_channels_mark(self, path: Path, _: Any) -> None:
        """As the publisher, who signs no state that was put back."""
        signer = open_signer(self.home.uri("promotion"))
        publisher = Publisher(str(self.home.channel), signer, open_signer(self.home.uri("witness")), CHANNEL_LIFE, path)
        publisher._said(read_place(publisher.place, "metadata/timestamp.json"))


def about(read: dict[str, list[Any]], version: Registered) -> list[Any]:
    """What was read of one version."""
    named = [row for name in ("versions", "tags") for row in read.get(name, [])]
    figures = [row for row in read.get("figures", []) if row[0] == version.mlflow_run]
    return figures + [row for row in named if (row[0], str(row[1])) == (version.model, version.version)]


def check_stored(path: Path, known: tuple[list[Listed], Listed, Callable[[list[Listed]], str], str]) -> None:
    """As whoever compares the digest of the folder, or file, that it lies in."""
    files, own, take, expected = known
    now = own._replace(digest=digest_file(path))
    if take([now if one is own else one for one in files]) != expected:
        raise LineageError("another digest")


def read_record(path: Path) -> Content:
    """A step's record."""
    return StepRecord.model_validate_json(path.read_bytes())


def read_ledger(path: Path) -> Content:
    """The rows of the ledger's table; its other columns repeat what the entries say."""
    with closing(sqlite3.connect(path)) as database:
        return list(database.execute("SELECT position, entry FROM triptych_ledger ORDER BY position"))


def read_registry(path: Path) -> dict[str, list[Any]]:
    """What is read of MLflow's database about versions; the rest is text for its pages."""
    with closing(sqlite3.connect(path)) as database:
        return {name: sorted(database.execute(query)) for name, query in READ.items()}


def read_envelope(path: Path) -> Content:
    """What a signed envelope holds."""
    found = json.loads(path.read_bytes())
    signatures = [(one["keyid"], b64decode(one["sig"])) for one in found["signatures"]]
    return found["payloadType"], b64decode(found["payload"]), signatures


def read_mark(path: Path) -> Content:
    """What is compared of a mark; its time only tells when it was made."""
    seen = Checkpoint.model_validate_json(path.read_bytes())
    return seen.ledger, seen.size, seen.head


def copy_of(work_dir: Path, target: Path) -> Path:
    """A copy of what a run left, whose MLflow database names the copy's files."""
    for name in KEPT:
        if (work_dir / name).is_dir():
            shutil.copytree(work_dir / name, target / name)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work_dir / name, target / name)
    with closing(sqlite3.connect(target / "mlflow.db")) as database, database:
        for column in ("source", "storage_location"):
            change = f"UPDATE model_versions SET {column} = replace({column}, ?, ?)"
            database.execute(change, (work_dir.as_uri(), target.as_uri()))
            served = f"UPDATE model_versions SET {column} = replace({column}, 'mlflow-artifacts:/', ?)"
            database.execute(served, (f"{(target / 'artifacts').as_uri()}/",))
    return target
