"""The restore drill of `docs/operate.md`: databases and bucket are lost, and come back from what it says to back up."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from lineage.artifacts import fetch_weights
from lineage.embedded import Embedded
from lineage.entries import PolicySet
from lineage.policy import policy_digest
from lineage.records import RunContext
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.stores import export
from pipelines.audit.collect import audit
from pipelines.audit.report import Sources
from pipelines.cli import app
from tests.audit.world import GATE, MODEL, TERMS, World, draw_pictures
from tests.servers.engines import database, drop, program
from tests.servers.governed import Server, governed, settings, signed_in

DATABASES = ("drill-ledger", "drill-mlflow")
RECORDS = "s3://artifacts/drill/records"
MOST = 600.0
"""Seconds that a restore may take, from empty databases to a verified ledger."""


def call(*arguments: str | Path, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    return done.output


class Apart(Embedded):
    """The keys of a server's folder, used by steps that ask the server for the ledger."""

    def context(self, run: str, records: str, tracking_uri: str, **more: str) -> RunContext:
        made = super().context(run, records, tracking_uri, **more)
        keys = {role: made.keys[role] for role in ("run", "gate")}
        return made.model_copy(update={"ledger": tracking_uri, "keys": keys, "witness": "", "channel": "", "marks": ""})


@dataclass
class OnServer(World):
    """Runs whose versions, evidence and records are all there, registered at a governed server."""

    server: Server = field(kw_only=True)

    @property
    def home(self) -> Embedded:
        return Apart(self.server.folder)

    @property
    def store(self) -> Registry:
        return Registry(self.server.url, MODEL)

    @property
    def records(self) -> Any:
        return RECORDS


def two_champions(server: Server, folder: Path) -> OnServer:
    """Versions 1 and 2, each trained, judged, and made champion at the server."""
    world, policy = OnServer(folder, server=server), {"evaluation": TERMS, "gate": GATE.model_dump(mode="json")}
    body = PolicySet(model=MODEL, digest=policy_digest(**policy), **policy, user="root", reason="the first one")
    server.ledger().append(body, open_signer(world.home.uri("root")))
    draw_pictures(folder / "pictures")
    with signed_in(server):
        first = world.retrain("run-1", [0, 1, 2, 5], 0.3, promote=False)
        assert server.set_alias(MODEL, first).ok
        second = world.retrain("run-2", [1, 2, 3, 5, 7], 0.3, world.candidates[first], promote=False)
    assert server.set_alias(MODEL, second).ok and (first, second) == ("1", "2")
    return world


def plain(url: str) -> str:
    """A database's URL as PostgreSQL's own programs take it."""
    return url.replace("postgresql+psycopg", "postgresql")


def run(name: str, *arguments: str | Path) -> None:
    subprocess.run([program(name), *map(str, arguments)], check=True, capture_output=True)


class Bucket:
    """What of a bucket belongs to the drill."""

    def __init__(self) -> None:
        import boto3

        self.client: Any = boto3.client("s3")

    def keys(self) -> Iterator[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="artifacts", Prefix="drill/")
        yield from (one["Key"] for page in pages for one in page.get("Contents", []))

    def copy(self) -> dict[str, bytes]:
        return {key: self.client.get_object(Bucket="artifacts", Key=key)["Body"].read() for key in self.keys()}

    def restore(self, copied: dict[str, bytes]) -> None:
        for key, content in copied.items():
            self.client.put_object(Bucket="artifacts", Key=key, Body=content)

    def lose(self) -> None:
        for key in list(self.keys()):
            self.client.delete_object(Bucket="artifacts", Key=key)
        assert not list(self.keys())


def findings(server: Server, version: str) -> list[str]:
    """What an audit over HTTP says of a version, of which everything must hold."""
    with signed_in(server):
        entries = server.ledger().entries()
        found = audit(version, Sources(entries, server.root, RECORDS, server.url, MODEL, remote=True))
    said = [f"{one.standing}: {one.subject}: {one.reason}" for one in found.findings]
    assert found.holds and found.count("holds") >= 30, said
    return said


def witnessed(folder: Path) -> Path:
    """A copy of the witness' checkpoints, as it is made to check the ledger by."""
    import boto3

    client: Any = boto3.client("s3")
    folder.mkdir()
    for one in client.list_objects_v2(Bucket="witness", Prefix="drill/")["Contents"]:
        content = client.get_object(Bucket="witness", Key=one["Key"])["Body"].read()
        (folder / one["Key"].rpartition("/")[2]).write_bytes(content)
    return folder


def test_what_is_backed_up_comes_back_whole(cluster: str, storage: dict[str, str], tmp_path: Path) -> None:
    copied, backup, bucket = tmp_path / "server", tmp_path / "backup", Bucket()
    copied.mkdir()
    backup.mkdir()
    ledger, backend = (database(cluster, name) for name in DATABASES)
    more = storage | {"TRIPTYCH_WITNESS": "s3://witness/drill", "TRIPTYCH_CHANNEL": "s3://artifacts/drill/channel"}
    environment = settings(copied, ledger, "header", **more)
    running = environment, 2, backend, "s3://artifacts/drill/models"
    try:
        with governed(copied, *running) as server:
            world = two_champions(server, tmp_path / "world")
            assert server.move("rollback", MODEL, "1", "blurred").ok
            before, said = export(server.ledger().entries()), findings(server, "1")
            with signed_in(server):
                call("ledger", "export", "--server", server.url, backup / "ledger.jsonl")
            run("pg_dump", "--format=custom", "--no-owner", "--file", backup / "mlflow", plain(backend))
            objects = bucket.copy()
        for name in DATABASES:
            drop(cluster, name)
        bucket.lose()
        (copied / "mark.json").unlink()

        began = time.monotonic()
        for name in DATABASES:
            database(cluster, name)
        run("pg_restore", "--no-owner", "--exit-on-error", "--dbname", plain(backend), backup / "mlflow")
        call("ledger", "import", backup / "ledger.jsonl", backup / "ledger.root.pub", "--into", ledger)
        bucket.restore(objects)
        with governed(copied, *running) as server:
            with signed_in(server):
                call("reconcile", "--server", server.url, "--model", MODEL)
                call("ledger", "export", "--server", server.url, backup / "restored.jsonl")
            exported, checkpoints = backup / "restored.jsonl", witnessed(backup / "witness")
            verify = "ledger", "verify", exported, backup / "restored.root.pub", "--checkpoint", checkpoints
            last = len(before.splitlines()) - 1
            assert f"complete up to entry {last}, as the witness saw" in call(*verify)
            took = time.monotonic() - began
            print(f"restored and verified in {took:.0f} s")
            assert took <= MOST
            assert export(server.ledger().entries()) == before == exported.read_text()
            assert server.champion(MODEL) == "1"
            assert findings(server, "1") == said
            with signed_in(server):
                fetch_weights(server.url, f"models:/{MODEL}/1", world.candidates["1"], tmp_path / "weights")
            answer = server.move("rollback", MODEL, "2", "sharp after all")
            assert answer.ok, answer.text
        exported.write_text("".join(before.splitlines(keepends=True)[:-1]))
        assert "were taken off its end" in call(*verify, status=1), "a backup that is too old is told by the witness"
    finally:
        for name in DATABASES:
            drop(cluster, name)
