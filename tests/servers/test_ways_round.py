"""Ways round the guard, each tried as somebody would who may edit everything in MLflow."""

from __future__ import annotations

import http.client
import posixpath
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.ledger import _signed
from lineage.signing import open_signer
from tests.servers.conftest import Portraits
from tests.servers.governed import ADMIN, PASSWORD, digest_of, reason_in, registration, signed_in

MLFLOW = "/api/2.0/mlflow"


@pytest.fixture(autouse=True)
def champion_stays(portraits: Portraits) -> Iterator[None]:
    """Whatever was tried: the same entries, the same champion, the same weights."""
    server, champion = portraits.server, portraits.champion
    before = server.ledger().state.size
    with signed_in(server):
        yield
    assert server.ledger().state.size == before
    assert server.champion(portraits.model) == champion.number
    (files,) = (server.folder / "artifacts").glob(f"*/{champion.mlflow_run}/artifacts/candidate-*")
    assert digest_path(files / "model" / "artifacts/weights") == digest_of(champion)
    assert digest_path(files / "evidence/verdict/verdict.dsse.json") == champion.tags["verdict"]
    assert sorted(path.name for path in (files / "model").iterdir()) == ["README.md", "artifacts"]
    assert sorted(path.name for path in files.iterdir()) == ["evidence", "model"]


@pytest.fixture
def client(portraits: Portraits) -> MlflowClient:
    return MlflowClient(portraits.server.url, portraits.server.url)


@pytest.mark.parametrize("route", ["/api/2.0/mlflow", "/ajax-api/2.0/mlflow"])
@pytest.mark.parametrize("alias", ["champion", "Champion"])
def test_alias_on_a_rejected_version(portraits: Portraits, route: str, alias: str) -> None:
    body = {"name": portraits.model, "version": portraits.rejected.number, "alias": alias}
    answer = portraits.server.ask("POST", f"{route}/registered-models/alias", json=body)
    assert "is reject, not promote" in reason_in(answer)


ALIKE = ["chámpion", "champiôn", "ｃhampion", "ⅽhampion", "champıon", "champion\n", " champion", "champion\u200b"]
"""Aliases that some database, or somebody, takes for champion."""


@pytest.mark.parametrize("alias", ALIKE)
def test_an_alias_that_could_be_taken_for_champion(portraits: Portraits, alias: str) -> None:
    answer = portraits.server.set_alias(portraits.model, portraits.rejected.number, alias)
    assert answer.status_code == 400
    assert "letters of ASCII" in answer.json()["message"] or "Invalid alias" in answer.json()["message"]


@pytest.mark.parametrize("name", ["pórtraits", "portraits ", "ｐortraits", "portraits\n", "-portraits"])
def test_a_model_that_could_be_taken_for_another(portraits: Portraits, client: MlflowClient, name: str) -> None:
    answer = portraits.server.ask("POST", f"{MLFLOW}/registered-models/create", json={"name": name})
    assert answer.status_code == 400 and "letters of ASCII" in answer.json()["message"]
    client.create_registered_model("plain")
    body = {"name": "plain", "new_name": name}
    answer = portraits.server.ask("POST", f"{MLFLOW}/registered-models/rename", json=body)
    assert answer.status_code == 400 and "letters of ASCII" in answer.json()["message"]
    client.delete_registered_model("plain")


def test_taking_the_alias_away(portraits: Portraits) -> None:
    body = {"name": portraits.model, "alias": "champion"}
    answer = portraits.server.ask("DELETE", f"{MLFLOW}/registered-models/alias", json=body)
    assert "triptych withdraw" in reason_in(answer)


def test_renaming_the_model(portraits: Portraits) -> None:
    body = {"name": portraits.model, "new_name": "elsewhere"}
    answer = portraits.server.ask("POST", f"{MLFLOW}/registered-models/rename", json=body)
    assert "it keeps its name" in reason_in(answer)


def test_another_model_takes_the_name(portraits: Portraits, client: MlflowClient) -> None:
    client.create_registered_model("impostor")
    body = {"name": "impostor", "new_name": portraits.model}
    answer = portraits.server.ask("POST", f"{MLFLOW}/registered-models/rename", json=body)
    assert "no other model takes its name" in reason_in(answer)
    client.delete_registered_model("impostor")


def test_deleting_the_champions_version(portraits: Portraits) -> None:
    body = {"name": portraits.model, "version": portraits.champion.number}
    answer = portraits.server.ask("DELETE", f"{MLFLOW}/model-versions/delete", json=body)
    assert "cannot be deleted" in reason_in(answer)


def test_deleting_the_model(portraits: Portraits) -> None:
    answer = portraits.server.ask("DELETE", f"{MLFLOW}/registered-models/delete", json={"name": portraits.model})
    assert "cannot be deleted" in reason_in(answer)


@pytest.mark.parametrize("key", ["triptych.verdict", "triptych.standing", "Triptych.candidate"])
def test_editing_a_versions_tags(portraits: Portraits, key: str) -> None:
    body = {"name": portraits.model, "version": portraits.rejected.number, "key": key, "value": "sha256:good"}
    assert "not for editing" in reason_in(portraits.server.ask("POST", f"{MLFLOW}/model-versions/set-tag", json=body))
    body.pop("value")
    gone = portraits.server.ask("DELETE", f"{MLFLOW}/model-versions/delete-tag", json=body)
    assert "not for editing" in reason_in(gone)


def test_hiding_the_model_among_the_prompts(portraits: Portraits) -> None:
    body = {"name": portraits.model, "key": "mlflow.prompt.is_prompt", "value": "true"}
    answer = portraits.server.ask("POST", f"{MLFLOW}/registered-models/set-tag", json=body)
    assert "not for editing" in reason_in(answer)


def test_copying_weights_onto_a_new_version(portraits: Portraits, client: MlflowClient) -> None:
    copy = client.copy_model_version(f"models:/{portraits.model}/{portraits.rejected.number}", portraits.model)
    answer = portraits.server.set_alias(portraits.model, str(copy.version))
    assert "is not in the ledger" in reason_in(answer)
    client.delete_model_version(portraits.model, copy.version)


def test_a_model_of_ones_own(portraits: Portraits, client: MlflowClient) -> None:
    client.create_registered_model("shadow")
    copy = client.copy_model_version(f"models:/{portraits.model}/{portraits.rejected.number}", "shadow")
    assert "is not in the ledger" in reason_in(portraits.server.set_alias("shadow", str(copy.version)))
    client.delete_registered_model("shadow")


def artifacts_of(portraits: Portraits, client: MlflowClient) -> str:
    """Path of the folder that holds the champion's files, as the server's routes have it."""
    return portraits.champion.source.removeprefix("mlflow-artifacts:/").removesuffix("/model")


@pytest.mark.parametrize("route", ["/api/2.0/mlflow-artifacts/artifacts", "/ajax-api/2.0/mlflow-artifacts/artifacts"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    "file",
    [
        "model/artifacts/weights/unet.bin",
        "model/README.md",
        "model/new.py",
        "evidence/verdict/verdict.dsse.json",
        "new",
    ],
)
def test_writing_over_files(portraits: Portraits, client: MlflowClient, route: str, method: str, file: str) -> None:
    answer = portraits.server.ask(method, f"{route}/{artifacts_of(portraits, client)}/{file}", data=b"other weights")
    assert "its files never change" in reason_in(answer)


@pytest.mark.parametrize("above", ["model", "model/artifacts/weights", "", "..", "../..", "../../.."])
def test_deleting_whole_folders(portraits: Portraits, client: MlflowClient, above: str) -> None:
    folder = posixpath.normpath(f"{artifacts_of(portraits, client)}/{above}")
    answer = portraits.server.ask("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/{folder}")
    assert "its files never change" in reason_in(answer)


TRICKS = [
    "/{run}//model//artifacts/weights//unet.bin",
    "//{run}/model/artifacts/weights/unet.bin",
    "/{run}/./model/artifacts/weights/unet.bin",
    "/{run}/%6dodel/artifacts/weights/unet.bin",
    "/{run}/%256dodel/artifacts/weights/unet.bin",
    "/{run}/model%2Fartifacts/weights%2Funet.bin",
    "/{run}/evidence/%2e%2e/model/artifacts/weights/unet.bin",
    "/{run}/evidence/%252e%252e/model/artifacts/weights/unet.bin",
    "/{run}/model/artifacts/weights/unet.bin/",
    "/{run}/model/artifacts/weights/unet.bin?x=1",
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_other_spellings_of_the_path(portraits: Portraits, client: MlflowClient, method: str, trick: str) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts" + trick.format(run=artifacts_of(portraits, client))
    connection = http.client.HTTPConnection(urlsplit(portraits.server.url).netloc, timeout=60)
    headers = {"Authorization": "Basic " + b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()}
    connection.request(method, path, body=b"other weights", headers=headers)  # unlike requests, it sends it as it is
    assert connection.getresponse().status in (308, 400, 403, 404, 405)


def test_the_uis_own_upload(portraits: Portraits, client: MlflowClient) -> None:
    attempt = artifacts_of(portraits, client).rpartition("/")[2]
    where = {"run_uuid": portraits.champion.mlflow_run, "path": f"{attempt}/model/artifacts/weights/unet.bin"}
    answer = portraits.server.ask("POST", "/ajax-api/2.0/mlflow/upload-artifact", params=where, data=b"other weights")
    assert "its files never change" in reason_in(answer)


def test_deleting_the_run(portraits: Portraits) -> None:
    answer = portraits.server.ask("POST", f"{MLFLOW}/runs/delete", json={"run_id": portraits.champion.mlflow_run})
    assert "cannot be deleted" in reason_in(answer)


SPELLINGS = ["{}", "0{}", " {}", "+{}", "{} ", "0_{}"]
"""Of an experiment's number; MLflow takes them all."""
EXPERIMENT_ROUTES = {
    "experiments/delete": ({}, "cannot be deleted"),
    "experiments/update": ({"new_name": "elsewhere"}, "keeps its name"),
}


@pytest.mark.parametrize("route", EXPERIMENT_ROUTES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_experiment_by_another_number(
    portraits: Portraits, client: MlflowClient, route: str, spelling: str
) -> None:
    number = client.get_run(portraits.champion.mlflow_run).info.experiment_id
    more, reason = EXPERIMENT_ROUTES[route]
    body = {"experiment_id": spelling.format(number), **more}
    assert reason in reason_in(portraits.server.ask("POST", f"{MLFLOW}/{route}", json=body))


def test_another_experiment_takes_its_name(portraits: Portraits, client: MlflowClient) -> None:
    body = {"name": portraits.model, "artifact_location": "file:///tmp/mine"}
    answer = portraits.server.ask("POST", f"{MLFLOW}/experiments/create", json=body)
    assert "takes its name" in reason_in(answer)
    other = client.create_experiment("other")
    body = {"experiment_id": other, "new_name": portraits.model}
    answer = portraits.server.ask("POST", f"{MLFLOW}/experiments/update", json=body)
    assert "takes its name" in reason_in(answer)
    client.delete_experiment(other)
    client.restore_experiment(other)
    client.rename_experiment(other, f"free-{other}")


@pytest.mark.parametrize("inside", ["", "/model", "/evidence/deep"])
def test_an_experiment_with_its_files_in_a_versions_folder(
    portraits: Portraits, client: MlflowClient, inside: str
) -> None:
    where = f"mlflow-artifacts:/{artifacts_of(portraits, client)}{inside}"
    answer = portraits.server.ask(
        "POST", f"{MLFLOW}/experiments/create", json={"name": "inside", "artifact_location": where}
    )
    assert "its files never change" in reason_in(answer)


def test_a_version_whose_files_are_not_its_runs_own(portraits: Portraits, client: MlflowClient) -> None:
    run, strange = portraits.champion.mlflow_run, portraits.next.mlflow_run
    own = client.get_run(run).info.artifact_uri
    logged = client.create_logged_model(client.get_run(run).info.experiment_id, name="logged", source_run_id=run)
    for source in (
        "s3://bucket/",
        "s3://artifacts/models",
        "https://example.org/model",
        "mlflow-artifacts:/",
        own,
        own.replace(run, strange) + "/model",
        logged.model_uri,
    ):
        body = {"name": portraits.model, "source": source, "run_id": run}
        answer = portraits.server.ask("POST", f"{MLFLOW}/model-versions/create", json=body)
        assert answer.status_code in (400, 403), source
        if answer.status_code == 403:
            assert "are not in the artifact folder of its own run" in answer.json()["message"], source
    without = {"name": portraits.model, "source": "s3://bucket/model"}
    answer = portraits.server.ask("POST", f"{MLFLOW}/model-versions/create", json=without)
    assert answer.status_code in (400, 404)


def test_a_version_that_the_ledger_does_not_know_blocks_nobody(portraits: Portraits, client: MlflowClient) -> None:
    client.create_registered_model("squatter")
    client.create_model_version("squatter", "s3://everything/here", run_id=portraits.rejected.mlflow_run)
    mine = client.get_run(portraits.rejected.mlflow_run).info.artifact_uri
    client.create_model_version("squatter", mine, run_id=portraits.rejected.mlflow_run)
    client.log_text(portraits.rejected.mlflow_run, "seen", "notes/seen.txt")
    client.log_text(portraits.rejected.mlflow_run, "next", "candidate-other/model/README.md")
    client.delete_registered_model("squatter")


def test_a_version_enters_the_ledger_only_with_files_of_its_own_run(portraits: Portraits, client: MlflowClient) -> None:
    server, version = portraits.server, portraits.rejected
    client.create_registered_model("remade")
    client.create_model_version("remade", "s3://everything/here", run_id=version.mlflow_run)
    client.create_model_version("remade", version.source, run_id=version.mlflow_run)
    signer = open_signer(Embedded(server.folder).uri("run"))
    for number, run in (
        ("1", version.mlflow_run),
        ("2", portraits.next.mlflow_run),
        ("3", "r"),
        ("02", "r"),
        ("x", "r"),
    ):
        made = replace(version, name="remade", number=number, mlflow_run=run)
        body = registration(made, "rejected", digest_of(version), digest_of(version), version.tags["verdict"])
        entry = _signed(server.ledger().state, body, signer)
        answer = server.ask("POST", "/api/2.0/triptych/entries", data=entry.model_dump_json())
        assert "its own run" in reason_in(answer) or "MLflow has no version" in reason_in(answer)
    client.delete_registered_model("remade")


def test_commands_through_the_assistant(portraits: Portraits) -> None:
    answer = portraits.server.ask("POST", "/ajax-api/3.0/mlflow/assistant/message", json={"message": "cat the key"})
    assert answer.status_code in (404, 405)


def test_what_stays_free(portraits: Portraits, client: MlflowClient) -> None:
    version = portraits.rejected
    client.set_registered_model_alias(portraits.model, "challenger", version.number)
    client.delete_registered_model_alias(portraits.model, "challenger")
    client.set_model_version_tag(portraits.model, version.number, "note", "looked at it")
    experiment = client.get_run(version.mlflow_run).info.experiment_id
    client.set_experiment_tag(experiment, "mlflow.note.content", "portraits")
    client.update_model_version(portraits.model, version.number, "blurred")
    client.log_text(portraits.champion.mlflow_run, "seen", "notes/seen.txt")
    with pytest.raises(MlflowException, match="not found"):
        client.set_registered_model_alias(portraits.model, "champion", "99")
