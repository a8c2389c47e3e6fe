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

from pipelines.workspace import Workspace, WorkspaceError


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
        "TRIPTYCH_MARK": str(home.folder / "marks" / "server.json"),
        "TRIPTYCH_AUTHENTICATION": "none",
    }


def server_command(place: Workspace, port: int) -> list[str]:
    """The command of an MLflow server on the loopback address."""
    return [
        sys.executable,
        *(
            "-m",
            "mlflow",
            "server",
            "--app-name",
            "triptych",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *("--backend-store-uri", place.database, "--artifacts-destination", str(place.artifacts)),
    ]


@contextmanager
def tracking_server(place: Workspace, patience: float = 120.0) -> Iterator[str]:
    """Run an MLflow server as long as the block lasts; gives its URI.

    Args:
        patience: seconds to wait for its first answer; the first start creates the database.

    Raises:
        WorkspaceError: it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    log = place.root / "logs" / "mlflow-server.log"
    with (
        log.open("a") as stream,
        subprocess.Popen(
            server_command(place, port), env=server_environment(place), stdout=stream, stderr=stream
        ) as server,
    ):
        try:
            _await(uri, server, patience, str(log))
            yield uri
        finally:
            server.terminate()


def _await(uri: str, server: subprocess.Popen[bytes], patience: float, log: str) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise WorkspaceError(f"the MLflow server does not answer at {uri}; its output is in {log}")
