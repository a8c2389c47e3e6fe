"""MEDIUM: a version's surroundings are spoiled after it is made, and before the ledger knows it."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.register.register import create
from lineage.digests import LineageError
from lineage.registry import Registry, Version
from tests.servers.governed import Pipeline, Server, pin_policy

MLFLOW = "/api/2.0/mlflow"
PROMPT = {"key": "mlflow.prompt.is_prompt", "value": "true"}


def candidate(server: Server, model: str, monkeypatch: pytest.MonkeyPatch, route: str, **named: str) -> Version:
    """Register a candidate, with a request of somebody else's between its making and its registration."""

    def with_a_request(store: Registry, run: str, *args: Any) -> Version:
        made = create(store, run, *args)
        known = {"run_id": run, "name": model, "version": made.number}
        known["experiment_id"] = MlflowClient(server.url).get_run(run).info.experiment_id
        body = {name: value.format(**known) for name, value in named.items()}
        server.ask("POST", f"{MLFLOW}/{route}", json=body)
        return made

    monkeypatch.setattr("tests.servers.governed.create", with_a_request)
    return Pipeline(server).candidate(model, "first")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_the_run_behind_a_champion_is_deleted_before_it_is_registered(
    open_server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # `mlflow gc` then removes the champion's files, or, where they lie behind the server, fails for ever after.
    model, identity = f"deleted-{what}", f"{what}_id"
    pin_policy(open_server, model)
    asked = {identity: f"{{{identity}}}"}
    try:
        made = candidate(open_server, model, monkeypatch, f"{what}s/delete", **asked)
    except (LineageError, MlflowException):
        return  # not registered at all: fine
    promoted = open_server.set_alias(model, made.number).ok
    client = MlflowClient(open_server.url)
    run = client.get_run(made.mlflow_run).info
    stages = {run.lifecycle_stage, client.get_experiment(run.experiment_id).lifecycle_stage}
    assert not promoted or stages == {"active"}


@pytest.mark.parametrize("what", ["registered-models", "model-versions"])
def test_hidden_among_the_prompts_for_ever(open_server: Server, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    # After the registration nobody can take the tag away, and nothing of the model can be promoted.
    model = f"hidden-{what}"
    pin_policy(open_server, model)
    made = candidate(open_server, model, monkeypatch, f"{what}/set-tag", name="{name}", version="{version}", **PROMPT)
    gone = {"name": model, "version": made.number, "key": PROMPT["key"]}
    open_server.ask("DELETE", f"{MLFLOW}/{what}/delete-tag", json=gone)
    answer = open_server.move("promote", model, made.number)
    assert answer.ok, f"{answer.status_code}: {answer.text[:200]}"
