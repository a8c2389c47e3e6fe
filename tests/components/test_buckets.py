"""Sources in an S3 bucket, on a server that speaks S3: read, copied to, refused, cut off."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from components.snapshot_data import snapshot as snapshot_module
from components.snapshot_data.folder import SnapshotError
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import Snapshot, take_snapshot
from components.snapshot_data.source import open_source
from lineage.pictures import PictureError, manifest_rows, read_picture
from tests.components.test_sources import picture

BUCKET = "portraits"


class Proxy:
    """Passes bytes on to the S3 server; of each answer no more than ``limit``, once that is set."""

    def __init__(self, target: int) -> None:
        self.target, self.limit = target, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pass_on, args=(client, server, 0), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, self.limit), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, limit: int) -> None:
        passed = 0
        try:
            while (some := source.recv(4096)) and not (limit and passed > limit):
                target.sendall(some)
                passed += len(some)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Bucket:
    """A bucket, and snapshots of what is in it."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def imagefolder(self, seeds: range, size: int = 32, **told: Any) -> None:
        rows = [{"file_name": f"{seed} é#.png", "text": f"number {seed}", **told} for seed in seeds]
        for seed, row in zip(seeds, rows, strict=True):
            self.put(f"new/{row['file_name']}", picture(seed, size))
        self.put("new/metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())

    def take(self, source: str = f"s3://{BUCKET}/new", **settings: Any) -> Snapshot:
        asked = DataSettings.model_validate({"source": source, **settings})
        return take_snapshot(asked, self.folder / "snapshot", self.folder / "state")

    def manifest(self) -> list[dict[str, Any]]:
        return list(manifest_rows(self.folder / "snapshot" / "manifest.parquet"))


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    started = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def bucket(server: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_ENDPOINT_URL", address),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    ask(address, "reset")
    s3fs.S3FileSystem.clear_instance_cache()
    made = Bucket(address, tmp_path)
    made.client.create_bucket(Bucket=BUCKET)
    yield made
    ask(address, "reset-auth", "inf")
    s3fs.S3FileSystem.clear_instance_cache()


def ask(address: str, what: str, body: str = "") -> None:
    request = urllib.request.Request(f"{address}/moto-api/{what}", body.encode(), {"Content-Type": "text/plain"})
    with urllib.request.urlopen(request):
        pass


def test_a_bucket_is_the_same_data_as_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    bucket.imagefolder(range(5))
    taken = bucket.take()
    rows = bucket.manifest()
    assert rows[0]["uri"] == f"s3://{BUCKET}/new/0 é#.png"
    assert [read_picture(row) for row in rows] == [picture(seed) for seed in range(5)]
    local = tmp_path / "local"
    s3fs.S3FileSystem().get(f"{BUCKET}/new/", f"{local}/", recursive=True)
    here = take_snapshot(DataSettings(source=str(local)), tmp_path / "here")
    assert (taken.rows, taken.digest, taken.unlisted) == (5, here.digest, 0)


def test_only_new_and_changed_objects_are_fetched(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.imagefolder(range(4))
    assert bucket.take().read == 4
    assert bucket.take().read == 0
    fetched: list[str] = []
    really = snapshot_module.read_bytes
    monkeypatch.setattr(snapshot_module, "read_bytes", lambda uri: fetched.append(uri) or really(uri))
    bucket.imagefolder(range(5))
    bucket.put("new/1 é#.png", picture(100))
    again = bucket.take()
    assert again.read == 2
    names = [uri.removeprefix(f"s3://{BUCKET}/new/") for uri in fetched]
    assert sorted(names) == ["1 é#.png", "4 é#.png", "metadata.jsonl"]


def test_images_inside_parquet_in_a_bucket(bucket: Bucket) -> None:
    stream = pa.BufferOutputStream()
    cells = [{"bytes": picture(seed), "path": None} for seed in range(6)]
    pq.write_table(pa.table({"image": cells, "text": list("abcdef")}), stream, row_group_size=2)
    bucket.put("inside/train.parquet", stream.getvalue().to_pybytes())
    assert bucket.take(f"s3://{BUCKET}/inside").rows == 6
    assert [read_picture(row) for row in bucket.manifest()] == [picture(seed) for seed in range(6)]
    assert bucket.take(f"s3://{BUCKET}/inside/train.parquet").rows == 6


def test_copies_go_to_a_bucket(bucket: Bucket) -> None:
    bucket.imagefolder(range(3))
    before = bucket.take()
    assert bucket.take(copy=True, store=f"s3://{BUCKET}/copies").digest == before.digest
    assert bucket.take(copy=True, store=f"s3://{BUCKET}/copies").read == 0
    for row in bucket.manifest():
        assert row["uri"].startswith(f"s3://{BUCKET}/copies/")
        assert read_picture(row) == picture(int(row["file_name"].split()[0]))


def test_an_object_that_changed_or_went_is_found_out_when_it_is_read(bucket: Bucket) -> None:
    bucket.imagefolder(range(2))
    bucket.take()
    first, second = bucket.manifest()
    bucket.put("new/0 é#.png", picture(50))
    bucket.client.delete_object(Bucket=BUCKET, Key="new/1 é#.png")
    with pytest.raises(PictureError, match=r"0 é#\.png at s3://.* has changed: its digest was sha256:"):
        read_picture(first)
    with pytest.raises(PictureError, match=r"nothing is at s3://portraits/new/1 é#\.png"):
        read_picture(second)


def refused(bucket: Bucket, source: str = f"s3://{BUCKET}/new") -> str:
    """What the snapshot and the look before a run both say; nothing may be left behind."""
    with pytest.raises(SnapshotError) as before:
        open_source(DataSettings(source=source))
    with pytest.raises(SnapshotError) as refusal:
        bucket.take(source)
    assert str(before.value) == str(refusal.value)
    assert not (bucket.folder / "snapshot").exists()
    return str(refusal.value)


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    assert "there is no s3://nowhere/new" in refused(bucket, "s3://nowhere/new")


def test_wrong_credentials(bucket: Bucket) -> None:
    bucket.imagefolder(range(2))
    ask(bucket.server, "reset-auth", "0")
    said = refused(bucket)
    assert (
        "data.source s3://portraits/new: " in said and "may not be read: " in said and "check the credentials" in said
    )


def test_a_server_that_is_not_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    assert f"127.0.0.1:{port}" in refused(bucket)


def test_a_connection_that_is_cut_half_way_leaves_nothing_half_written(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.imagefolder(range(2), size=32)
    before = bucket.take()
    proxy = Proxy(int(bucket.server.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket.imagefolder(range(2))
    bucket.put("new/1 é#.png", picture(1, 512))
    assert len(picture(1, 512)) > 100_000
    proxy.limit = 40_000
    with pytest.raises(SnapshotError, match=r"row 2 \(1 é#\.png\): s3://portraits/new/1 é#\.png cannot be re"):
        bucket.take()
    assert not list(bucket.folder.glob("*.partial"))
    assert [row["sha256"] for row in bucket.manifest()] and bucket.manifest()[1]["bytes"] == len(picture(1))
    proxy.limit = 0
    s3fs.S3FileSystem.clear_instance_cache()
    after = bucket.take()
    assert (after.rows, after.read, after.digest != before.digest) == (2, 1, True), "the first was read and kept"
    proxy.listener.close()
