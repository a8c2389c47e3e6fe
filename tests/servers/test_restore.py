"""The restore drill of `docs/operate.md`: databases and bucket are lost, and come back from what it says to back up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from lineage.artifacts import fetch_weights
from lineage.stores import export
from pipelines.audit.collect import audit
from pipelines.audit.report import Sources
from pipelines.cli import app
from tests.servers.conftest import portraits_on
from tests.servers.engines import database, drop, program
from tests.servers.governed import Server, digest_of, governed, settings, signed_in

DATABASES = ("drill-ledger", "drill-mlflow")


def call(*arguments: str | Path) -> None:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output


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
    """What an audit over HTTP says of a version."""
    with signed_in(server):
        sources = Sources(server.ledger().entries(), server.root, registry=server.url, model="drill", remote=True)
        return [f"{one.standing}: {one.subject}: {one.reason}" for one in audit(version, sources).findings]


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
            portraits = portraits_on(server, "drill")
            assert server.set_alias("drill", portraits.next.number).ok
            assert server.move("rollback", "drill", portraits.champion.number, "blurred").ok
            before, said = export(server.ledger().entries()), findings(server, portraits.champion.number)
            with signed_in(server):
                call("ledger", "export", "--server", server.url, backup / "ledger.jsonl")
            run("pg_dump", "--format=custom", "--no-owner", "--file", backup / "mlflow", plain(backend))
            objects = bucket.copy()
        for name in DATABASES:
            drop(cluster, name)
        bucket.lose()
        (copied / "mark.json").unlink()

        for name in DATABASES:
            database(cluster, name)
        run("pg_restore", "--no-owner", "--exit-on-error", "--dbname", plain(backend), backup / "mlflow")
        call("ledger", "import", backup / "ledger.jsonl", backup / "ledger.root.pub", "--into", ledger)
        bucket.restore(objects)
        with governed(copied, *running) as server:
            with signed_in(server):
                call("reconcile", "--server", server.url, "--model", "drill")
                call("ledger", "export", "--server", server.url, backup / "restored.jsonl")
            assert export(server.ledger().entries()) == before
            assert server.champion("drill") == portraits.champion.number
            assert findings(server, portraits.champion.number) == said
            with signed_in(server):
                uri = f"models:/drill/{portraits.champion.number}"
                fetch_weights(server.url, uri, digest_of(portraits.champion), tmp_path / "weights")
            answer = server.move("rollback", "drill", portraits.next.number, "sharp after all")
            assert answer.ok, answer.text
        call("ledger", "verify", backup / "restored.jsonl", backup / "restored.root.pub")
    finally:
        for name in DATABASES:
            drop(cluster, name)
