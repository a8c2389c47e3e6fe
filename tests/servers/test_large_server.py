"""A server as a cluster has it: PostgreSQL, S3, a proxy that names the users, three workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from lineage.digests import LineageError
from lineage.registry import Registry, fetch_weights
from lineage.witness import S3Witness, check_against, latest_checkpoint
from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import OFFICER, Server, digest_of, reason_in

MULTIPART = "/api/2.0/mlflow-artifacts/mpu"


@pytest.fixture(scope="module")
def large(large_server: Server) -> Portraits:
    return portraits_on(large_server, "large")


@pytest.fixture
def bucket(storage: dict[str, str]) -> Any:
    import boto3

    return boto3.client("s3")


def test_the_proxys_user_is_in_the_ledger(large: Portraits, tmp_path: Any) -> None:
    server = large.server
    assert "is reject, not promote" in reason_in(server.set_alias("large", large.rejected.number, user="mia"))
    assert server.set_alias("large", large.next.number, user="mia").ok
    assert server.move("rollback", "large", large.champion.number, "blurred", user="ben").ok
    moves = [(move.action, move.user) for move in server.ledger().state.moves.values() if move.model == "large"]
    assert moves == [("promote", "admin"), ("promote", "mia"), ("rollback", "ben")]
    champion = Registry(server.url, "large").champion()
    assert champion is not None
    fetch_weights(server.url, champion.uri, digest_of(large.champion), tmp_path / "weights")


def test_a_header_that_names_two_users_names_none(large: Portraits) -> None:
    headers = {"X-User": "mia", "X_User": OFFICER}
    body = {"action": "override", "model": "large", "version": large.rejected.number, "reason": "because"}
    answer = requests.post(f"{large.server.url}/api/2.0/triptych/moves", json=body, headers=headers, timeout=60)
    assert "several users" in reason_in(answer)
    without = requests.post(f"{large.server.url}/api/2.0/triptych/moves", json=body, timeout=60)
    assert "unauthenticated is not one" in reason_in(without)


def test_uploads_in_parts(large: Portraits, bucket: Any) -> None:
    run = Registry(large.server.url, "large").client.get_run(large.champion.run).info.artifact_uri
    folder = run.removeprefix("mlflow-artifacts:/") + "/model/artifacts/weights"
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
    (key,) = [row["Key"] for row in listed if portraits.next.run in row["Key"] and row["Key"].endswith("unet.bin")]
    bucket.put_object(Bucket="artifacts", Key=key, Body=b"other weights")
    assert "changed after they were recorded" in reason_in(large_server.set_alias("swapped", portraits.next.number))


@pytest.fixture
def witness(large: Portraits) -> Iterator[S3Witness]:
    yield S3Witness("s3://witness/checkpoints")


def test_the_witness_keeps_its_first_word(large: Portraits, witness: S3Witness, bucket: Any) -> None:
    ledger = large.server.ledger()
    seen = latest_checkpoint(witness, ledger.state)
    assert seen is not None
    check_against(ledger.all, seen, "the witness")
    name, first = next(reversed(witness.read().items()))
    key = f"checkpoints/{name}"
    bucket.put_object(Bucket="witness", Key=key, Body=b"nothing happened")
    bucket.delete_object(Bucket="witness", Key=key)
    assert witness.read()[name] == first
    versions = bucket.list_object_versions(Bucket="witness", Prefix=key)["Versions"]
    oldest = min(versions, key=lambda version: version["LastModified"])
    with pytest.raises(ClientError, match="AccessDenied"):
        bucket.delete_object(Bucket="witness", Key=key, VersionId=oldest["VersionId"])
    assert witness.read()[name] == first
    with pytest.raises(LineageError, match="taken off its end"):
        check_against(ledger.all[: seen.size - 1], seen, "the witness")
