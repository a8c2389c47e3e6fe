"""A PostgreSQL cluster and an S3 server of our own, on loopback, for as long as a test needs them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sql

from tests.servers.governed import free_port

DEBIAN = Path("/usr/lib/postgresql")
UNPRIVILEGED = "postgres"
"""Debian's user for it; PostgreSQL refuses to run as root."""


def program(name: str) -> str:
    """Debian keeps PostgreSQL's programs out of PATH."""
    found = shutil.which(name, path=":".join([str(folder) for folder in DEBIAN.glob("*/bin")] + [os.environ["PATH"]]))
    assert found, f"{name} is not here; run: make test-servers"
    return found


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a cluster; gives its URL without the database's name."""
    port, user = free_port(), pwd.getpwuid(os.geteuid()).pw_name
    user = UNPRIVILEGED if os.geteuid() == 0 else user
    with tempfile.TemporaryDirectory(prefix="postgresql-") as scratch:
        folder = Path(scratch)
        shutil.chown(folder, user)
        data = folder / "data"

        def run(*line: str) -> None:
            subprocess.run(line, check=True, user=user, group=pwd.getpwnam(user).pw_gid, cwd=folder, stdout=quiet)

        with (folder / "log").open("w") as quiet:
            run(program("initdb"), "-D", str(data), "-A", "trust", "-U", "triptych", "-E", "UTF8", "--no-sync")
            options = f"-c listen_addresses=127.0.0.1 -c port={port} -k {folder} -c fsync=off -c max_connections=200"
            run(program("pg_ctl"), "-D", str(data), "-o", options, "-w", "-l", str(data / "server.log"), "start")
            try:
                yield f"postgresql+psycopg://triptych@127.0.0.1:{port}"
            finally:
                run(program("pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")


def database(cluster: str, name: str) -> str:
    """Make a database in the cluster; gives its URL."""
    _administer(cluster, f'CREATE DATABASE "{name}"')
    return f"{cluster}/{name}"


def drop(cluster: str, name: str) -> None:
    """Remove a database, whoever is connected to it."""
    _administer(cluster, f'DROP DATABASE "{name}" WITH (FORCE)')


def _administer(cluster: str, statement: str) -> None:
    engine = sql.create_engine(f"{cluster}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sql.text(statement))
    engine.dispose()


@contextmanager
def s3(**buckets: bool) -> Iterator[dict[str, str]]:
    """Run an S3 server with ``buckets`` (name -> object lock); gives the environment in which clients find it."""
    from boto3 import client
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
    }
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        for bucket, locked in buckets.items():
            client("s3").create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locked)
        yield environment
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()
