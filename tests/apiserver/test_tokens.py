"""The governed server's users by the word of a real API server: TokenReview and SubjectAccessReview."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from infra.governed.settings import Settings
from lineage.digests import LineageError
from lineage.ledger import Ledger
from tests.apiserver.apiserver import ApiServer
from tests.servers.governed import clean_environment, command, free_port, settings

OURS = "/api/2.0/triptych"
SEARCH = "/api/2.0/mlflow/experiments/search"


@dataclass
class Governed:
    url: str
    api: ApiServer

    def ask(self, method: str, path: str, token: str = "", **more: object) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.request(
            method, self.url + path, timeout=60, headers={**headers, **more.pop("headers", {})}, **more
        )  # type: ignore


@pytest.fixture(scope="module")
def governed(api: ApiServer, warnings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    """A governed server outside of the cluster, with the token of its service account in a kubeconfig."""
    folder, port = tmp_path_factory.mktemp("governed"), free_port()
    kubeconfig = folder / "kubeconfig"
    api._write_kubeconfig(kubeconfig, api.token_of("triptych-promotion"))
    told = settings(folder, authentication="kubernetes", TRIPTYCH_NAMESPACE="triptych", TRIPTYCH_OFFICERS="olga")
    backend = f"sqlite:///{folder / 'mlflow.db'}"
    environment = {**clean_environment(), **told, "KUBECONFIG": str(kubeconfig)}
    migrated = subprocess.run(
        [sys.executable, "-m", "infra.governed.migrate"],
        env={**environment, "MLFLOW_BACKEND_STORE_URI": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert migrated.returncode == 0 and "the ledger has 1 entries and holds" in migrated.stdout, migrated.stderr
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command(folder, port, 1, backend, str(folder / "files")),
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    server, end = Governed(f"http://127.0.0.1:{port}", api), time.monotonic() + 180
    while True:
        try:
            if server.ask("GET", "/health").ok:
                break
        except requests.ConnectionError:
            pass
        assert process.poll() is None and time.monotonic() < end, (folder / "server.log").read_text()[-3000:]
        time.sleep(0.5)
    yield server
    process.terminate()
    process.wait(60)


def test_without_a_token_nobody_is_let_in(governed: Governed) -> None:
    for path in (f"{OURS}/state", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/runs/get"):
        answer = governed.ask("GET", path)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", path
    assert governed.ask("GET", "/health").status_code == 200
    assert governed.ask("GET", f"{OURS}/channel/metadata/timestamp.json").status_code in (200, 404)


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_what_is_no_token_of_the_cluster_is_refused(governed: Governed, token: str) -> None:
    assert governed.ask("GET", f"{OURS}/state", token).status_code == 401


def test_a_step_reads_and_writes(governed: Governed) -> None:
    token = governed.api.token_of("triptych-run")
    assert governed.ask("GET", f"{OURS}/state", token).status_code == 200
    made = governed.ask("POST", "/api/2.0/mlflow/experiments/create", token, json={"name": "by a step"})
    assert made.status_code == 200, made.text
    assert governed.ask("POST", SEARCH, token, json={"max_results": 10}).status_code == 200


def test_an_account_without_the_right_is_refused(governed: Governed) -> None:
    answer = governed.ask("GET", f"{OURS}/state", governed.api.token_of("triptych-serve"))
    assert answer.status_code == 403 and "may not get experiments of mlflow.kubeflow.org" in answer.text


def test_moves_want_the_right_to_move(governed: Governed) -> None:
    body = {"action": "promote", "model": "portraits", "version": "1", "reason": ""}
    gate = governed.ask("POST", f"{OURS}/moves", governed.api.token_of("triptych-gate"), json=body)
    assert gate.status_code == 403 and "may not update registeredmodels" in gate.text
    run = governed.ask("POST", f"{OURS}/moves", governed.api.token_of("triptych-run"), json=body)
    assert run.status_code == 403 and "registeredmodels" not in run.text  # the ledger knows no such version


def test_officers_are_named_and_no_account_is_one(governed: Governed) -> None:
    body = {"action": "withdraw", "model": "portraits", "version": "1", "reason": "consent"}
    answer = governed.ask("POST", f"{OURS}/moves", governed.api.token_of("triptych-run"), json=body)
    assert answer.status_code == 403 and "is for officers" in answer.text


@pytest.mark.parametrize(
    "name", ["X-Triptych-Kubernetes-User", "x_triptych_kubernetes_user", "X_TRIPTYCH-Kubernetes_User"]
)
def test_a_client_cannot_name_itself(governed: Governed, name: str) -> None:
    body = {"action": "withdraw", "model": "portraits", "version": "1", "reason": "consent"}
    token = governed.api.token_of("triptych-run")
    answer = governed.ask("POST", f"{OURS}/moves", token, json=body, headers={name: "olga"})
    assert answer.status_code == 403 and "is for officers" in answer.text
    assert governed.ask("GET", f"{OURS}/state", headers={name: "olga"}).status_code == 401


def test_a_token_for_somebody_else_is_refused(governed: Governed) -> None:
    token = governed.api.token_of("triptych-run", audience="pipelines.kubeflow.org")
    assert governed.ask("GET", f"{OURS}/state", token).status_code == 401


def test_two_tokens_are_none(governed: Governed) -> None:
    token = governed.api.token_of("triptych-run")
    with requests.Session() as session:
        request = requests.Request("GET", f"{governed.url}{OURS}/state").prepare()
        request.headers["Authorization"] = f"Bearer {token}, Bearer {token}"
        assert session.send(request, timeout=60).status_code == 401


def test_a_step_uses_the_ledger_through_mlflows_own_plug_in(governed: Governed, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    governed.api._write_kubeconfig(kubeconfig, governed.api.token_of("triptych-run"))
    script = (
        "import sys; from lineage.stores import ServerStore; print(len(ServerStore(sys.argv[1]).entries(0)), 'entries')"
    )
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "MLFLOW_TRACKING_AUTH": "kubernetes"}
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", script, governed.url], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "1 entries" in done.stdout, done.stderr


def test_an_api_server_that_is_away_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.governed.tokens import Reviewer, UnreachableError

    (tmp_path / "config").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{free_port()}'}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    with pytest.raises(UnreachableError, match="does not answer a TokenReview") as refused:
        Reviewer("triptych").user("a-secret-token")
    assert "a-secret-token" not in str(refused.value)


def test_migrating_twice_and_without_a_ledger(tmp_path: Path) -> None:
    told = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'm.db'}", "TRIPTYCH_ROOT": "0" * 64}
    told["TRIPTYCH_LEDGER"] = f"sqlite:///{tmp_path / 'ledger.db'}"
    migrate = [sys.executable, "-m", "infra.governed.migrate"]
    done = subprocess.run(migrate, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr
    folder = tmp_path / "home"
    made = settings(folder)
    told |= {"TRIPTYCH_LEDGER": made["TRIPTYCH_LEDGER"], "TRIPTYCH_ROOT": made["TRIPTYCH_ROOT"]}
    for _ in range(2):
        done = subprocess.run(migrate, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert Ledger.open(made["TRIPTYCH_LEDGER"], made["TRIPTYCH_ROOT"]).state.size == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"TRIPTYCH_NAMESPACE": ""}, "TRIPTYCH_NAMESPACE goes with TRIPTYCH_AUTHENTICATION=kubernetes"),
        ({"TRIPTYCH_AUTHENTICATION": "none"}, "TRIPTYCH_NAMESPACE goes with TRIPTYCH_AUTHENTICATION=kubernetes"),
        ({"TRIPTYCH_USER_HEADER": "X-User"}, "TRIPTYCH_USER_HEADER goes with TRIPTYCH_AUTHENTICATION=header"),
    ],
)
def test_settings_that_do_not_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str
) -> None:
    told = settings(tmp_path, authentication="kubernetes", TRIPTYCH_NAMESPACE="triptych") | changes
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LineageError, match=said):
        Settings.read()
