"""A server as a cluster has it: PostgreSQL, S3, a proxy that names the users, three workers."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from infra.governed.artifacts import GuardedFolders
from infra.governed.writes import Writes
from lineage.artifacts import fetch_weights
from lineage.digests import LineageError
from lineage.witness import S3Witness, check_against, hear
from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import OFFICER, Server, digest_of, reason_in, signed_in

MULTIPART = "/api/2.0/mlflow-artifacts/mpu"


@pytest.fixture(scope="module")
def large(large_server: Server) -> Portraits:
    return portraits_on(large_server, "large")


@pytest.fixture
def bucket(storage: dict[str, str]) -> Any:
    import boto3

    return boto3.client("s3")


def test_the_proxys_user_is_in_the_ledger(large: Portraits, tmp_path: Path) -> None:
    server = large.server
    assert "is reject, not promote" in reason_in(server.set_alias("large", large.rejected.number, user="mia"))
    assert server.set_alias("large", large.next.number, user="mia").ok
    assert server.move("rollback", "large", large.champion.number, "blurred", user="ben").ok
    moves = [(move.action, move.user) for move in server.moves("large")]
    assert moves == [("promote", "admin"), ("promote", "mia"), ("rollback", "ben")]
    assert server.champion("large") == large.champion.number
    with signed_in(server):
        uri = f"models:/large/{large.champion.number}"
        fetch_weights(server.url, uri, digest_of(large.champion), tmp_path / "weights")


NOBODY = {
    "no header": [],
    "an empty header": [("X-User", "")],
    "its twin for WSGI alone": [("X_User", OFFICER)],
    "its twin in capitals": [("X_USER", OFFICER)],
    "the twin beside it": [("X-User", "mia"), ("X_User", OFFICER)],
    "the twin before it": [("X_User", OFFICER), ("X-User", "mia")],
    "it twice": [("X-User", "mia"), ("X-User", OFFICER)],
    "two names in one": [("X-User", f"mia, {OFFICER}")],
}
"""Headers that reach the server, past the proxy or through one that removes too little."""
ROUTES = [
    ("POST", "/api/2.0/triptych/moves"),
    ("GET", "/api/2.0/triptych/entries"),
    ("POST", "/api/2.0/mlflow/registered-models/alias"),
    ("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/file.txt"),
    ("POST", "/graphql"),
    ("GET", "/get-artifact?path=x&run_uuid=y"),
    ("GET", "/static-files/../api/2.0/triptych/entries"),
    ("GET", "/health/../api/2.0/triptych/entries"),
    ("GET", "//api/2.0/triptych/entries"),
]


def answer_past_the_proxy(server: Server, method: str, path: str, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.behind).netloc, timeout=60)
    connection.putrequest(method, path)  # unlike requests it sends headers twice
    for name, value in [*headers, ("Content-Length", "2"), ("Content-Type", "application/json")]:
        connection.putheader(name, value)
    connection.endheaders(b"{}")
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("headers", NOBODY)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_request_that_names_nobody_is_refused(large: Portraits, headers: str, method: str, path: str) -> None:
    status, content = answer_past_the_proxy(large.server, method, path, NOBODY[headers])
    assert status in (401, 403, 404)
    if status == 404:  # nothing is there but the pages' own files
        assert "/static-files/" in path
    else:
        assert "header x-user" in json.loads(content)["message"]


def test_what_needs_no_user(large: Portraits) -> None:
    for path in ("/", "/health", "/version"):
        assert requests.get(f"{large.server.behind}{path}", timeout=60).status_code == 200


def test_uploads_in_parts(large: Portraits, bucket: Any) -> None:
    folder = large.champion.source.removeprefix("mlflow-artifacts:/") + "/artifacts/weights"
    body = {"path": "unet.bin", "num_parts": 1}
    assert "never change" in reason_in(large.server.ask("POST", f"{MULTIPART}/create/{folder}", json=body))
    # One that began before, straight at the bucket, is not completed either.
    key = f"models/{folder}/unet.bin"
    upload = bucket.create_multipart_upload(Bucket="artifacts", Key=key)["UploadId"]
    part = bucket.upload_part(Bucket="artifacts", Key=key, UploadId=upload, PartNumber=1, Body=b"other")["ETag"]
    body = {"path": "unet.bin", "upload_id": upload, "parts": [{"part_number": 1, "etag": part}]}
    assert "never change" in reason_in(large.server.ask("POST", f"{MULTIPART}/complete/{folder}", json=body))
    answer = large.server.ask("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/{folder.split('/')[0]}")
    assert "never change" in reason_in(answer)
    stored = bucket.get_object(Bucket="artifacts", Key=key)["Body"].read()
    assert stored == b"weights of large-first"


def test_weights_that_changed_in_the_bucket_are_not_promoted(large_server: Server, bucket: Any) -> None:
    portraits = portraits_on(large_server, "swapped")
    listed = bucket.list_objects_v2(Bucket="artifacts")["Contents"]
    (key,) = [
        row["Key"] for row in listed if portraits.next.mlflow_run in row["Key"] and row["Key"].endswith("unet.bin")
    ]
    bucket.put_object(Bucket="artifacts", Key=key, Body=b"other weights")
    assert "the weights of version" in reason_in(large_server.set_alias("swapped", portraits.next.number))


def test_mlflows_own_client_uploads_in_parts_and_needs_no_url_that_writes(
    large: Portraits, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    (tmp_path / "sample.png").write_bytes(b"a picture")
    with signed_in(large.server):
        client = MlflowClient(large.server.url)
        client.log_artifact(large.rejected.mlflow_run, str(tmp_path / "sample.png"), "samples")
        fetched = client.download_artifacts(large.rejected.mlflow_run, "samples/sample.png", str(tmp_path))
    assert Path(fetched).read_bytes() == b"a picture"
    folder = large.champion.source.removeprefix("mlflow-artifacts:/")
    answer = large.server.ask("GET", f"/api/2.0/mlflow-artifacts/presigned/{folder}/README.md")
    assert answer.ok and requests.get(answer.json()["url"], timeout=60).content == b"a model card\n"


def test_no_url_that_writes_is_given_away(large: Portraits) -> None:
    # Of a run whose files lie in the bucket itself: only for such a one MLflow makes them.
    with signed_in(large.server):
        client = MlflowClient(large.server.url)
        experiment = client.create_experiment("direct", "s3://artifacts/direct")
        run = client.create_run(experiment).info.run_id
        logged = client.create_logged_model(experiment).model_id
    for owner in ({"run_id": run}, {"model_id": logged}):
        asked = {**owner, "path": "model/artifacts/weights/unet.bin", "expiration": 604800}
        answer = large.server.ask("POST", "/api/2.0/mlflow/artifacts/presigned-upload-url", json=asked)
        assert "gives no URLs that write" in reason_in(answer)


def test_urls_of_parts_are_given_only_where_they_write_no_more_than_a_part(tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repo import MultipartUploadMixin
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    class Store(LocalArtifactRepository, MultipartUploadMixin):
        def __init__(self, uri: str) -> None:
            self._artifact_dir = self.artifact_uri = uri

        def create_multipart_upload(self, *args: Any, **more: Any) -> Any:
            return "a URL"

        complete_multipart_upload = abort_multipart_upload = create_multipart_upload

    guarded = GuardedFolders("s3://artifacts", Writes(tmp_path), dict)._guarded(Store)
    assert guarded("s3://artifacts/1").create_multipart_upload("unet.bin") == "a URL"
    with pytest.raises(MlflowException, match=r"^Multipart upload is not supported"):  # so its client takes another way
        guarded("wasbs://artifacts@account.blob.core.windows.net/1").create_multipart_upload("unet.bin")


def test_a_move_waits_for_what_is_being_uploaded_into_its_run(large_server: Server) -> None:
    # As a worker holds it that copies a large file to the bucket.
    portraits = portraits_on(large_server, "waiting")
    writes = Writes(large_server.folder / "mark.writes")
    with ThreadPoolExecutor(1) as other:
        with writes.into([portraits.next.mlflow_run]):
            asked = other.submit(large_server.set_alias, "waiting", portraits.next.number)
            time.sleep(3)
            assert not asked.done()
            assert large_server.champion("waiting") == portraits.champion.number
        assert asked.result().ok
    assert large_server.champion("waiting") == portraits.next.number


def test_a_foreign_version_stops_nobody_from_writing(large: Portraits) -> None:
    with signed_in(large.server):
        client = MlflowClient(large.server.url)
        body = {"name": "large", "source": "s3://artifacts/models", "run_id": large.rejected.mlflow_run}
        answer = large.server.ask("POST", "/api/2.0/mlflow/model-versions/create", json=body)
        assert "are not in the artifact folder of its own run" in reason_in(answer)
        client.create_registered_model("squatter")
        client.create_model_version("squatter", "s3://artifacts/models", run_id=large.rejected.mlflow_run)
        client.log_text(large.rejected.mlflow_run, "seen", "notes/seen.txt")


def test_the_witness_keeps_every_word(large: Portraits, bucket: Any) -> None:
    witness, ledger = S3Witness("s3://witness/checkpoints"), large.server.ledger()
    told = hear(witness, ledger.state)
    assert told.latest is not None and told.latest.size == ledger.state.size
    name = f"{told.latest.stem}.json"
    first = dict(witness.read())[name]
    key = f"checkpoints/{name}"
    bucket.put_object(Bucket="witness", Key=key, Body=b"nothing happened")
    bucket.delete_object(Bucket="witness", Key=key)
    assert first in [content for found, content in witness.read() if found == name]
    versions = bucket.list_object_versions(Bucket="witness", Prefix=key)["Versions"]
    oldest = min(versions, key=lambda version: version["LastModified"])
    with pytest.raises(ClientError, match="AccessDenied"):
        bucket.delete_object(Bucket="witness", Key=key, VersionId=oldest["VersionId"])
    assert hear(witness, ledger.state).latest == told.latest
    shorter = ledger.state.model_copy(update={"size": told.latest.size - 1})
    with pytest.raises(LineageError, match="taken off its end"):
        check_against(shorter, ledger.digest_at, told.latest, "the witness")
