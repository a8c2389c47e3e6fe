"""A governed server, started as anybody would start it, and the pipeline that talks to it over HTTP."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from securesystemslib.signer import Signer

from components.register.register import create, new_attempt, upload
from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing
from lineage.channel.publisher import init
from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Moved, PolicySet, Registered
from lineage.ledger import Ledger, open_database
from lineage.policy import policy_digest
from lineage.registry import CHAMPION, Registry, Version
from lineage.signing import make_keys, open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement
from tests.servers.proxy import HEADER, proxied

ADMIN, OFFICER, EDITOR, READER = "admin", "olga", "erik", "rita"
PASSWORD = "a long enough password"
BASE = f"tree-sha256:{'0' * 64}"
"""Digest of the base model, the incumbent where there is no champion."""
TERMS = f"sha256:{'1' * 64}"
EVALUATION, GATE = {"set": BASE}, {"margin": 0.02}
POLICY = policy_digest(EVALUATION, GATE)
MLMODEL = f"flavors:\n  python_function:\n    loader_module: {LOADER}\n"
PATIENCE = 180.0


@dataclass(frozen=True)
class Server:
    """A running governed server."""

    url: str
    """Of the proxy, where there is one."""
    folder: Path
    environment: Mapping[str, str]
    backend: str
    authentication: str
    behind: str
    """Past the proxy."""

    @property
    def root(self) -> str:
        return self.environment["TRIPTYCH_ROOT"]

    def ledger(self) -> Ledger:
        """The ledger in its database, read and checked from its first entry on."""
        return Ledger.open(self.environment["TRIPTYCH_LEDGER"], self.root)

    def moves(self, model: str) -> list[Moved]:
        """The moves of a model's champion, in order."""
        bodies = [entry.body for entry in self.ledger().entries()]
        return [body for body in bodies if isinstance(body, Moved) and body.model == model]

    def ask(self, method: str, path: str, user: str = ADMIN, **more: Any) -> requests.Response:
        """One plain HTTP request."""
        credentials = None if self.authentication == "none" else (user, PASSWORD)
        return requests.request(method, f"{self.url}{path}", auth=credentials, timeout=120, **more)

    def set_alias(self, model: str, version: str, alias: str = CHAMPION, **more: Any) -> requests.Response:
        body = {"name": model, "version": version, "alias": alias}
        return self.ask("POST", "/api/2.0/mlflow/registered-models/alias", json=body, **more)

    def move(self, action: str, model: str, version: str, reason: str = "", **more: Any) -> requests.Response:
        body = {"action": action, "model": model, "version": version, "reason": reason}
        return self.ask("POST", "/api/2.0/triptych/moves", json=body, **more)

    def reconcile(self, model: str, **more: Any) -> requests.Response:
        return self.ask("POST", "/api/2.0/triptych/reconcile", json={"model": model}, **more)

    def champion(self, model: str) -> str:
        """The version to which the registry's alias points; empty if to none."""
        body = {"name": model, "alias": CHAMPION}
        answer = self.ask("GET", "/api/2.0/mlflow/registered-models/alias", params=body)
        return str(answer.json()["model_version"]["version"]) if answer.ok else ""

    def database(self) -> sqlite3.Connection:
        """MLflow's database, behind the server's back."""
        return sqlite3.connect(self.backend.removeprefix("sqlite:///"))

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "server.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(folder: Path, ledger: str = "", authentication: str = "none", **more: str) -> dict[str, str]:
    """The environment of a governed server whose keys and ledger are made in ``folder``."""
    home = Embedded(folder)
    public = make_keys(home.keys)
    url, channel = ledger or home.url, more.get("TRIPTYCH_CHANNEL", str(folder / "channel"))
    open_database(url, public, lambda: open_signer(home.uri("root")))
    (folder / "channel-root.json").write_bytes(init(channel, public, open_signer(home.uri("root"))))
    said = {
        "TRIPTYCH_LEDGER": url,
        "TRIPTYCH_ROOT": home.root,
        "TRIPTYCH_PROMOTION_KEY": home.uri("promotion"),
        "TRIPTYCH_WITNESS": str(folder / "witness"),
        "TRIPTYCH_WITNESS_KEY": home.uri("witness"),
        "TRIPTYCH_MARK": str(folder / "mark.json"),
        "TRIPTYCH_CHANNEL": channel,
        "TRIPTYCH_AUTHENTICATION": authentication,
    }
    if authentication == "basic-auth":
        users = folder / "users.ini"
        users.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = sqlite:///{folder / 'users.db'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 600\n"
        )
        said |= {
            "TRIPTYCH_OFFICERS": OFFICER,
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "the same in all workers",
        }
    if authentication == "header":
        said |= {"TRIPTYCH_OFFICERS": OFFICER, "TRIPTYCH_USER_HEADER": HEADER}
    return said | more


def command(folder: Path, port: int, workers: int, backend: str, destination: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "triptych", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", str(workers), "--backend-store-uri", backend),
        *("--artifacts-destination", destination, *more),
    ]


def clean_environment() -> dict[str, str]:
    """Ours without what would steer MLflow or Triptych."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TRIPTYCH_"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}


@contextmanager
def governed(
    folder: Path,
    environment: Mapping[str, str],
    workers: int = 2,
    backend: str = "",
    destination: str = "",
) -> Iterator[Server]:
    """Run a server as long as the block lasts."""
    port = free_port()
    backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
    line = command(folder, port, workers, backend, destination or str(folder / "artifacts"))
    log = folder / "server.log"
    authentication, behind = environment["TRIPTYCH_AUTHENTICATION"], f"http://127.0.0.1:{port}"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            line, stdout=stream, stderr=stream, env=clean_environment() | dict(environment), cwd=folder
        ) as process,
    ):
        try:
            _await(behind, process, log)
            with proxied(behind) if authentication == "header" else nullcontext(behind) as url:
                server = Server(url, folder, environment, backend, authentication, behind)
                if authentication == "basic-auth":
                    _people(server)
                yield server
        finally:
            process.terminate()
            process.wait(60)


def refusal_to_start(folder: Path, environment: Mapping[str, str], *more: str, backend: str = "") -> str:
    """What the command says that does not start a server."""
    backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
    line = command(folder, free_port(), 2, backend, str(folder / "artifacts"), *more)
    whole = clean_environment() | dict(environment)
    done = subprocess.run(line, env=whole, capture_output=True, text=True, timeout=PATIENCE, cwd=folder, check=False)
    assert done.returncode == 1, done.stderr
    (said,) = [row for row in done.stderr.splitlines() if "the governed server does not start: " in row]
    return said


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.3)
    raise AssertionError(f"the server does not answer:\n{log.read_text()[-4000:]}")


def _people(server: Server) -> None:
    for name in (OFFICER, EDITOR, READER):
        body = {"username": name, "password": PASSWORD}
        assert server.ask("POST", "/api/2.0/mlflow/users/create", json=body).ok


@contextmanager
def signed_in(server: Server, user: str = ADMIN) -> Iterator[None]:
    """MLflow's client acts as ``user`` as long as the block lasts."""
    before = dict(os.environ)
    if server.authentication != "none":
        os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Pipeline:
    """What a pipeline does at a server: it holds the run and the gate key, never the promotion key."""

    def __init__(self, server: Server) -> None:
        self.server = server
        keys = Embedded(server.folder)
        self.run_signer, self.gate_signer = open_signer(keys.uri("run")), open_signer(keys.uri("gate"))

    def candidate(
        self,
        model: str,
        name: str,
        incumbent: str = BASE,
        decision: str = "promote",
        uploaded: Callable[[str], None] = lambda source: None,
    ) -> Version:
        """Register weights of their own, judged against ``incumbent``.

        Args:
            name: the run's.
            uploaded: called with the URI of the model folder, before there is a version.
        """
        with signed_in(self.server):
            return self._candidate(model, name, incumbent, decision, uploaded)

    def _candidate(
        self, model: str, name: str, incumbent: str, decision: str, uploaded: Callable[[str], None]
    ) -> Version:
        folder = self.server.folder / "runs" / f"{model}-{name}"
        weights, card, verdict = write_candidate(folder, decision, self.gate_signer)
        digest, envelope = digest_path(weights), digest_path(verdict / VERDICT_FILE)
        ledger = Ledger.open(self.server.url, self.server.root)
        ledger.append(judgement(model, name, digest, incumbent, decision, envelope), self.gate_signer)
        registry = Registry(self.server.url, model)
        run = registry.open_run(name)
        source = upload(registry, run, card, weights, {"verdict": verdict}, new_attempt())
        uploaded(source)
        tags = {"standing": "candidate", "candidate": digest, "verdict": envelope, "decision": decision}
        tags |= {"incumbent": incumbent}
        made = create(registry, run, source, tags, f"the gate says {decision}")
        registered = registration(made, name, digest, folder_of(card, weights), envelope)
        evidence = {"verdict": digest_path(verdict)}
        ledger.append(registered.model_copy(update={"evidence": evidence}), self.run_signer)
        return made


def judgement(model: str, run: str, candidate: str, incumbent: str, decision: str, verdict: str) -> Judged:
    return Judged(
        run=run,
        model=model,
        candidate=candidate,
        incumbent=incumbent,
        decision=decision,
        verdict=verdict,
        evaluation=BASE,
        policy=POLICY,
    )


def registration(version: Version, run: str, candidate: str, folder: str, verdict: str) -> Registered:
    return Registered(
        run=run,
        model=version.name,
        version=version.number,
        candidate=candidate,
        folder=folder,
        verdict=verdict,
        training_key=TERMS,
        evaluation_terms=TERMS,
        mlflow_run=version.mlflow_run,
        evidence={},
    )


def pin_policy(server: Server, model: str) -> None:
    """Pin the policy by the root key, as before a server runs."""
    body = PolicySet(model=model, digest=POLICY, gate=GATE, evaluation=EVALUATION, user="root", reason="the first one")
    server.ledger().append(body, open_signer(Embedded(server.folder).uri("root")))


def write_candidate(folder: Path, decision: str, gate: Signer) -> tuple[Path, Path, Path]:
    """Weights, a model folder without them, and a folder with a signed verdict."""
    weights, card, verdict = folder / "weights", folder / "model", folder / "verdict"
    for made in (weights, card, verdict):
        made.mkdir(parents=True)
    (weights / "unet.bin").write_text(f"weights of {folder.name}")
    (card / "MLmodel").write_text(MLMODEL)
    said = {"decision": decision, "figures": [{"axis": "realism", "lower": 0.1}], "about": folder.name}
    write_statement(make_statement(VERDICT, {"candidate": digest_path(weights)}, said), verdict / VERDICT_FILE, gate)
    return weights, card, verdict


def folder_of(card: Path, weights: Path) -> str:
    """The digest of the model folder that the two make."""
    inner = [file._replace(name=f"{WEIGHTS_FOLDER}/{file.name}") for file in listing(weights)]
    return folder_digest(sorted([*listing(card), *inner]))


def digest_of(version: Version) -> str:
    return version.tags["candidate"]


def reason_in(answer: requests.Response) -> str:
    """The reason of a refusal."""
    assert answer.status_code == 403, f"{answer.status_code}: {answer.text[:400]}"
    return str(answer.json()["message"])
