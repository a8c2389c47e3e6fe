"""The governed MLflow server on a work folder: for people (`triptych ui`) and for steps in containers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lineage.moves import CHANNEL_LIFE
from pipelines.errors import RequestError
from pipelines.workspace import Workspace

PATIENCE = 120.0
"""Seconds to wait for a server's first answer; the first start creates the database."""


def server_environment(place: Workspace) -> dict[str, str]:
    """What `infra.governed.settings` is told: the work folder's ledger and keys, nobody is asked who they are."""
    home = place.lineage
    home.open()
    return {
        **os.environ,
        "TRIPTYCH_LEDGER": home.url,
        "TRIPTYCH_ROOT": home.root,
        "TRIPTYCH_PROMOTION_KEY": home.uri("promotion"),
        "TRIPTYCH_WITNESS": str(home.witness.folder),
        "TRIPTYCH_WITNESS_KEY": home.uri("witness"),
        "TRIPTYCH_MARK": str(home.marks / "server.json"),
        "TRIPTYCH_CHANNEL": str(home.channel),
        "TRIPTYCH_CHANNEL_LIFE": str(CHANNEL_LIFE / timedelta(hours=1)),
        "TRIPTYCH_AUTHENTICATION": "none",
    }


def server_command(place: Workspace, port: int) -> list[str]:
    """The command of an MLflow server on the loopback address."""
    options = f"--app-name triptych --host 127.0.0.1 --port {port} --workers 1".split()
    stores = ["--backend-store-uri", place.database, "--artifacts-destination", str(place.artifacts)]
    return [sys.executable, "-m", "mlflow", "server", *options, *stores]


def pages(place: Workspace, port: int) -> list[str]:
    """The addresses of each experiment's runs, once there are some."""
    from mlflow import MlflowClient

    from components.plan.overview import KIND, page

    if not (place.root / "mlflow.db").exists():
        return []
    found = MlflowClient(place.database).search_experiments(filter_string=f"tags.`{KIND}` != ''")
    return [page(f"http://127.0.0.1:{port}", str(experiment.experiment_id)) for experiment in found]


@contextmanager
def tracking_server(place: Workspace) -> Iterator[str]:
    """Run an MLflow server as long as the block lasts; gives its URI.

    Raises:
        RequestError: it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri, command, told = f"http://127.0.0.1:{port}", server_command(place, port), server_environment(place)
    log = place.root / "logs" / "mlflow-server.log"
    with log.open("a") as stream, subprocess.Popen(command, env=told, stdout=stream, stderr=stream) as server:
        try:
            until = time.monotonic() + PATIENCE
            while not _answers(uri):
                if time.monotonic() > until or server.poll() is not None:
                    raise RequestError(f"the MLflow server does not answer at {uri}; its output is in {log}")
                time.sleep(0.3)
            yield uri
        finally:
            server.terminate()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2):
            return True
    except OSError:
        return False
