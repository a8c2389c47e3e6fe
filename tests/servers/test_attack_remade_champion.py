"""CRITICAL: `models:/NAME@champion` gives files that no entry names."""

from __future__ import annotations

import time
from threading import Thread
from typing import Any

import pytest

from components.register.register import create
from lineage.registry import Version
from tests.servers.governed import Pipeline, Server, pin_policy

MLFLOW = "/api/2.0/mlflow"
MANY = 50_000
"""Tags of a version, which MLflow reads one by one before it deletes the model: seconds."""


def put_evil(server: Server, version: Version) -> str:
    """Files of ours beside those of a version, in the folder of the same run; gives their URI."""
    folder = version.source.removeprefix("mlflow-artifacts:/").rpartition("/candidate-")[0]
    answer = server.ask(
        "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{folder}/candidate-evil/model/MLmodel", data=b"evil"
    )
    assert answer.ok
    return f"mlflow-artifacts:/{folder}/candidate-evil/model"


def remake(server: Server, version: Version, source: str) -> None:
    """Make the model again, up to the champion's number, from files of ours."""
    server.ask("POST", f"{MLFLOW}/registered-models/create", json={"name": version.name})
    body = {"name": version.name, "source": source, "run_id": version.mlflow_run}
    for _ in range(int(version.number)):
        server.ask("POST", f"{MLFLOW}/model-versions/create", json=body)
    server.set_alias(version.name, version.number)


def loaded(server: Server, model: str) -> str:
    """The URI that a client loads as ``models:/MODEL@champion``; empty where there is none."""
    asked = {"name": model, "alias": "champion"}
    answer = server.ask("GET", f"{MLFLOW}/registered-models/alias", params=asked)
    return str(answer.json()["model_version"]["source"]) if answer.ok else ""


def test_a_model_deleted_while_it_is_registered_and_promoted(
    open_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only requests: a deletion that was let pass before the ledger knew the model ends after the promotion.
    server, model = open_server, "deleted-meanwhile"
    pin_policy(server, model)
    experiment = server.ask("POST", f"{MLFLOW}/experiments/create", json={"name": model}).json()["experiment_id"]
    run = server.ask("POST", f"{MLFLOW}/runs/create", json={"experiment_id": experiment}).json()["run"]["info"]
    server.ask("POST", f"{MLFLOW}/registered-models/create", json={"name": model})
    tags = [{"key": f"k{number}", "value": "v"} for number in range(MANY)]
    body = {"name": model, "source": f"{run['artifact_uri']}/x", "run_id": run["run_id"], "tags": tags}
    assert server.ask("POST", f"{MLFLOW}/model-versions/create", json=body).ok
    answers: list[int] = []

    def delete() -> None:
        answer = server.ask("DELETE", f"{MLFLOW}/registered-models/delete", json={"name": model})
        answers.append(answer.status_code)

    deleting = Thread(target=delete)

    def with_a_deletion(*args: Any) -> Version:
        made = create(*args)
        deleting.start()
        time.sleep(0.3)
        return made

    monkeypatch.setattr("tests.servers.governed.create", with_a_deletion)
    version = Pipeline(server).candidate(model, "first")
    assert server.set_alias(model, version.number).ok
    deleting.join()
    remake(server, version, put_evil(server, version))
    assert answers != [200], "a model that the ledger knows was deleted"
    assert loaded(server, model) == version.source


def test_asking_again_for_the_champion_whose_version_was_remade(open_server: Server) -> None:
    # As after MLflow's database was put back to yesterday's backup: the ledger knows a version, MLflow does not.
    server, model = open_server, "remade-champion"
    pin_policy(server, model)
    version = Pipeline(server).candidate(model, "first")
    assert server.set_alias(model, version.number).ok
    with server.database() as database:
        for table in ("registered_model_aliases", "model_version_tags", "model_versions", "registered_models"):
            database.execute(f"DELETE FROM {table} WHERE name = ?", (model,))
    remake(server, version, put_evil(server, version))
    assert "candidate-evil" not in loaded(server, model), "the alias was set on files that were never checked"
