"""Ways round the guard, each tried as somebody would who may edit everything in MLflow."""

from __future__ import annotations

import http.client
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lineage.digests import digest_path
from tests.servers.conftest import Portraits
from tests.servers.governed import ADMIN, PASSWORD, digest_of, reason_in, signed_in

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
    (files,) = (server.folder / "artifacts").glob(f"*/{champion.run}/artifacts")
    assert digest_path(files / "model" / "artifacts/weights") == digest_of(champion)
    assert digest_path(next(files.glob("evidence/**/verdict.json"))) == champion.tags["verdict"]
    assert sorted(path.name for path in (files / "model").iterdir()) == ["README.md", "artifacts"]


@pytest.fixture
def client(portraits: Portraits) -> MlflowClient:
    return MlflowClient(portraits.server.url, portraits.server.url)


@pytest.mark.parametrize("route", ["/api/2.0/mlflow", "/ajax-api/2.0/mlflow"])
@pytest.mark.parametrize("alias", ["champion", "Champion"])
def test_alias_on_a_rejected_version(portraits: Portraits, route: str, alias: str) -> None:
    body = {"name": portraits.model, "version": portraits.rejected.number, "alias": alias}
    answer = portraits.server.ask("POST", f"{route}/registered-models/alias", json=body)
    assert "is reject, not promote" in reason_in(answer)


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
    return client.get_run(portraits.champion.run).info.artifact_uri.removeprefix("mlflow-artifacts:/")


@pytest.mark.parametrize("route", ["/api/2.0/mlflow-artifacts/artifacts", "/ajax-api/2.0/mlflow-artifacts/artifacts"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    "file", ["model/artifacts/weights/unet.bin", "model/README.md", "model/new.bin", "evidence/verdict.json"]
)
def test_writing_over_files(portraits: Portraits, client: MlflowClient, route: str, method: str, file: str) -> None:
    answer = portraits.server.ask(method, f"{route}/{artifacts_of(portraits, client)}/{file}", data=b"other weights")
    assert "its files never change" in reason_in(answer)


@pytest.mark.parametrize("above", ["model", "model/artifacts/weights", "", ".."])
def test_deleting_whole_folders(portraits: Portraits, client: MlflowClient, above: str) -> None:
    run = artifacts_of(portraits, client)
    folder = run.rsplit("/", 1)[0] if above == ".." else f"{run}/{above}".rstrip("/")
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


def test_the_uis_own_upload(portraits: Portraits) -> None:
    where = {"run_uuid": portraits.champion.run, "path": "model/artifacts/weights/unet.bin"}
    answer = portraits.server.ask("POST", "/ajax-api/2.0/mlflow/upload-artifact", params=where, data=b"other weights")
    assert "its files never change" in reason_in(answer)


def test_an_experiment_that_keeps_its_files_there(portraits: Portraits, client: MlflowClient) -> None:
    run = artifacts_of(portraits, client)
    body = {"name": "inside", "artifact_location": f"mlflow-artifacts:/{run}/model"}
    answer = portraits.server.ask("POST", f"{MLFLOW}/experiments/create", json=body)
    assert "its files never change" in reason_in(answer)


def test_deleting_the_run(portraits: Portraits) -> None:
    answer = portraits.server.ask("POST", f"{MLFLOW}/runs/delete", json={"run_id": portraits.champion.run})
    assert "cannot be deleted" in reason_in(answer)


def test_deleting_the_experiment(portraits: Portraits, client: MlflowClient) -> None:
    experiment = client.get_run(portraits.champion.run).info.experiment_id
    answer = portraits.server.ask("POST", f"{MLFLOW}/experiments/delete", json={"experiment_id": experiment})
    assert "cannot be deleted" in reason_in(answer)


def test_commands_through_the_assistant(portraits: Portraits) -> None:
    answer = portraits.server.ask("POST", "/ajax-api/3.0/mlflow/assistant/message", json={"message": "cat the key"})
    assert answer.status_code in (404, 405)


def test_what_stays_free(portraits: Portraits, client: MlflowClient) -> None:
    version = portraits.rejected
    client.set_registered_model_alias(portraits.model, "challenger", version.number)
    client.delete_registered_model_alias(portraits.model, "challenger")
    client.set_model_version_tag(portraits.model, version.number, "note", "looked at it")
    client.update_model_version(portraits.model, version.number, "blurred")
    client.log_text(portraits.champion.run, "seen", "notes/seen.txt")
    with pytest.raises(MlflowException, match="not found"):
        client.set_registered_model_alias(portraits.model, "champion", "99")
