"""The one reader of artifact places: what it reads in place, what it fetches, what it refuses, what it says."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import mlflow
import pytest
from moto.server import ThreadedMotoServer

from lineage import artifacts
from lineage.artifacts import (
    LOADER_FILE,
    WEIGHTS_FOLDER,
    Artifacts,
    digest_of,
    fetch_weights,
    folder_digest,
    listing,
    read_file,
    weights_digest,
)
from lineage.digests import LineageError, digest_path
from lineage.places import ChangedError, GoneError, UnreachableError, without_credentials


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with weights."""
    folder = tmp_path / "store" / "1" / "model"
    (folder / WEIGHTS_FOLDER / "vae").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / WEIGHTS_FOLDER / "model_index.json").write_text("{}")
    (folder / WEIGHTS_FOLDER / "vae" / "b é.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models"
    server.stop()


def reader(tmp_path: Path, local: Path | None = None, remote: bool = True) -> Artifacts:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return Artifacts(f"sqlite:///{tmp_path / 'none.db'}", local, scratch, remote)


def test_one_pass_gives_the_folders_and_the_weights_digest(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = artifacts.regular

    def counted(path: Path):  # type: ignore[no-untyped-def]
        opened.append(path)
        return real(path)

    monkeypatch.setattr(artifacts, "regular", counted)
    files = listing(model)
    assert folder_digest(files) == digest_path(model)
    assert weights_digest(files) == digest_path(model / WEIGHTS_FOLDER)
    assert len(opened) == len(set(opened)) == 3
    assert [one.size for one in files] == [path.stat().st_size for path in sorted(opened)]


def test_a_file_by_itself_has_its_own_digest(model: Path) -> None:
    assert digest_of(listing(model / "MLmodel")) == digest_path(model / "MLmodel")


def test_what_mlflows_loader_writes_is_no_part_of_the_folder(tmp_path: Path, model: Path) -> None:
    """MLflow does so when a version is loaded in place; only there, and only this one name."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("m")
    client.create_model_version("m", model.as_uri())
    before = folder_digest(listing(model))
    mlflow.set_tracking_uri(uri)
    mlflow.artifacts.download_artifacts("models:/m/1")
    assert (model / LOADER_FILE).is_file(), "MLflow writes it no more: LOADER_FILE can go"
    assert folder_digest(listing(model)) == before
    (model / WEIGHTS_FOLDER / LOADER_FILE).write_text("x")
    assert folder_digest(listing(model)) != before
    (model / WEIGHTS_FOLDER / LOADER_FILE).unlink()
    (model / "portrait_model.py").write_text("import os")
    assert folder_digest(listing(model)) != before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_out(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.parent)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [pipe, endless, link_out, link_to_itself, listening])
@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(
    tmp_path: Path, model: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = model / WEIGHTS_FOLDER / "vae" / "strange"
    monkeypatch.chdir(tmp_path)
    make(strange)
    with pytest.raises(ChangedError, match="strange is neither a file nor a folder"):
        listing(model)
    with pytest.raises(ChangedError, match="strange is neither a file nor a folder"):
        reader(tmp_path).open(str(strange))
    with pytest.raises(ChangedError, match="strange is neither a file nor a folder"):
        read_file(strange, 100)


def test_what_is_too_large_is_not_read(model: Path) -> None:
    with (model / "sparse").open("wb") as stream:
        stream.truncate(2**43)
    with pytest.raises(ChangedError, match="bytes"):
        listing(model)
    with pytest.raises(ChangedError, match="more than 4 bytes"):
        read_file(model / "MLmodel", 4)


def test_a_name_that_is_no_text_has_no_digest(model: Path) -> None:
    (model / os.fsdecode(b"\xff")).write_text("x")
    with pytest.raises(LineageError):
        folder_digest(listing(model))


def test_places_of_this_machine_are_read_where_they_lie(tmp_path: Path, model: Path) -> None:
    here = reader(tmp_path, tmp_path / "store", remote=False)
    for uri in (str(model), model.as_uri(), "mlflow-artifacts:/1/model", "mlflow-artifacts://host:5/1/model"):
        assert here.open(uri) == model
        assert here.names(uri) == {"MLmodel", "artifacts"}
    for uri in ("mlflow-artifacts:/../secret", "mlflow-artifacts:/1/%2e%2e/%2e%2e/secret"):
        with pytest.raises(ChangedError, match="leads out of the artifact store"):
            here.open(uri)


def test_gone_and_unreachable_are_told_apart(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3.client("s3").put_object(Bucket="models", Key="run/evidence/README.md", Body=b"text")
    with pytest.raises(GoneError):
        reader(tmp_path).open(str(tmp_path / "nowhere"))
    with pytest.raises(GoneError):
        reader(tmp_path).names(str(tmp_path / "nowhere"))
    with pytest.raises(GoneError):
        reader(tmp_path).open(f"{bucket}/run/evidence/scores")
    with pytest.raises(GoneError):
        reader(tmp_path).open("s3://another/run/evidence/scores")
    with pytest.raises(UnreachableError, match="nothing is fetched unless asked for"):
        reader(tmp_path, remote=False).open(f"{bucket}/run/evidence/README.md")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError):
        reader(tmp_path).open(f"{bucket}/run/evidence/README.md")


def test_what_lies_elsewhere_is_fetched_once(tmp_path: Path, bucket: str) -> None:
    client, there = boto3.client("s3"), reader(tmp_path)
    for name in ("README.md", "scores/a.png", "scores/b/c.png"):
        client.put_object(Bucket="models", Key=f"run/evidence/{name}", Body=name.encode())
    assert there.names(f"{bucket}/run/evidence") == {"README.md", "scores"}
    first = there.open(f"{bucket}/run/evidence/scores")
    assert [one.name for one in listing(first)] == ["a.png", "b/c.png"]
    client.delete_object(Bucket="models", Key="run/evidence/scores/a.png")
    assert there.open(f"{bucket}/run/evidence/scores") == first


@pytest.mark.parametrize(
    "text",
    [
        "http://ann:secret@host/a is gone",
        "postgresql+psycopg://ann:se%40cret@host/mlflow",
        "GET https://bucket/key?X-Amz-Signature=secret&a=b: 403",
    ],
)
def test_errors_carry_no_credentials(text: str) -> None:
    assert "secret" not in without_credentials(text) and "ann" not in without_credentials(text)
    assert "host" in without_credentials(text) or "bucket/key" in without_credentials(text)


def test_a_store_that_is_not_there_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9") as raised:
        reader(tmp_path).open("http://ann:secret@127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/1")
    assert "secret" not in str(raised.value)


def test_what_is_checked_is_what_is_handed_on(tmp_path: Path, model: Path) -> None:
    weights = model / WEIGHTS_FOLDER
    digest = digest_path(weights)
    assert digest_path(fetch_weights("", str(weights), digest, tmp_path / "copy")) == digest
    assert digest_path(weights) == digest
    with pytest.raises(ChangedError, match="changed after they were recorded"):
        fetch_weights("", str(weights), "sha256:0", tmp_path / "again")
    with pytest.raises(GoneError):
        fetch_weights("", str(tmp_path / "nowhere"), digest, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_named_folder_may_be_one_of_links(tmp_path: Path, model: Path) -> None:
    """As a cache of the Hub is; a version's stored weights may not."""
    weights, cache = model / WEIGHTS_FOLDER, tmp_path / "cache"
    cache.mkdir()
    (cache / "model_index.json").symlink_to(weights / "model_index.json")
    digest = digest_path(cache)
    assert digest_path(fetch_weights("", str(cache), digest, tmp_path / "copy")) == digest
    (cache / "endless").symlink_to("/dev/zero")
    with pytest.raises(ChangedError, match="endless is neither a file nor a folder"):
        fetch_weights("", str(cache), digest, tmp_path / "again")
