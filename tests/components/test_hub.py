"""Sources on the Hugging Face Hub, on a server that answers as the Hub does: read, missing, cut off."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, constants

from components.snapshot_data.folder import SnapshotError
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import Snapshot, take_snapshot
from components.snapshot_data.source import open_source
from lineage.pictures import PictureError, manifest_rows, read_picture
from tests.components.test_sources import picture

REPOSITORY = "datasets/somebody/portraits"
SOURCE = f"hf://{REPOSITORY}/new"


class Hub(ThreadingHTTPServer):
    """One dataset repository: its description, its tree, its files by range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.cut: set[str] = set()
        """Files of which only a part is sent before the connection ends."""

    def imagefolder(self, seeds: range) -> None:
        rows = [{"file_name": f"{seed} é#.png", "text": f"number {seed}"} for seed in seeds]
        self.files |= {f"new/{row['file_name']}": picture(seed) for seed, row in zip(seeds, rows, strict=True)}
        self.files["new/metadata.jsonl"] = "\n".join(map(json.dumps, rows)).encode()

    def tree(self, folder: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
            if name.startswith(f"{folder}/")
        ]


class Answer(BaseHTTPRequestHandler):
    """The few endpoints that its file system asks."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/{REPOSITORY}", f"/{REPOSITORY}/resolve/main/"
        if path.startswith(files):
            self._file(path.removeprefix(files))
        elif path in (api, f"{api}/revision/main"):
            self._json({"id": "somebody/portraits", "sha": "0" * 40})
        elif path.startswith(f"{api}/tree/main"):
            tree = self.server.tree(path.removeprefix(f"{api}/tree/main").strip("/"))
            self._json(tree) if tree else self._missing("EntryNotFound")
        else:
            self._missing("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _file(self, name: str) -> None:
        if name not in self.server.files:
            return self._missing("EntryNotFound")
        self.server.fetched.append(name)
        content = self.server.files[name]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if name in self.server.cut:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        # What HF_ENDPOINT says is read once, when the package is imported.
        address = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # It tries five times, with up to 8 s between.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        HfFileSystem.clear_instance_cache()
        yield server
        HfFileSystem.clear_instance_cache()
        server.shutdown()


def take(folder: Path, source: str = SOURCE) -> Snapshot:
    return take_snapshot(DataSettings(source=source), folder / "snapshot", folder / "state")


def manifest(folder: Path) -> list[dict[str, Any]]:
    return list(manifest_rows(folder / "snapshot" / "manifest.parquet"))


@pytest.mark.parametrize("source", [SOURCE, f"hf://{REPOSITORY}@main/new"])
def test_a_repository_is_the_same_data_as_a_folder(hub: Hub, tmp_path: Path, source: str) -> None:
    hub.imagefolder(range(5))
    taken = take(tmp_path, source)
    rows = manifest(tmp_path)
    assert rows[0]["uri"] == f"{source}/0 é#.png"
    assert [read_picture(row) for row in rows] == [picture(seed) for seed in range(5)]
    local = tmp_path / "local"
    local.mkdir()
    for name, content in hub.files.items():
        (local / Path(name).name).write_bytes(content)
    here = take_snapshot(DataSettings(source=str(local)), tmp_path / "here")
    assert (taken.rows, taken.digest, taken.unlisted) == (5, here.digest, 0)


def test_only_new_and_changed_files_are_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.imagefolder(range(4))
    assert take(tmp_path).read == 4
    assert take(tmp_path).read == 0
    hub.fetched.clear()
    hub.imagefolder(range(5))
    hub.files["new/1 é#.png"] = picture(100, 64)
    assert take(tmp_path).read == 2
    assert sorted(set(hub.fetched)) == ["new/1 é#.png", "new/4 é#.png", "new/metadata.jsonl"]
    assert read_picture(manifest(tmp_path)[1]) == picture(100, 64)


@pytest.mark.parametrize("source", ["hf://datasets/somebody/else", f"hf://{REPOSITORY}/nowhere"])
def test_a_repository_or_folder_that_is_not_there(hub: Hub, tmp_path: Path, source: str) -> None:
    hub.imagefolder(range(1))
    for ask in (lambda: open_source(DataSettings(source=source)), lambda: take(tmp_path, source)):
        with pytest.raises(SnapshotError) as refusal:
            ask()
        assert source in str(refusal.value)
        assert "data.source" in str(refusal.value)
    assert not (tmp_path / "snapshot").exists()


def test_a_connection_that_is_cut_half_way_leaves_nothing_half_written(hub: Hub, tmp_path: Path) -> None:
    hub.imagefolder(range(2))
    before = take(tmp_path)
    hub.imagefolder(range(3))
    hub.cut = {"new/2 é#.png"}
    with pytest.raises(SnapshotError, match=r"row 3 \(2 é#\.png\): hf://.*/2 é#\.png cannot be rea"):
        take(tmp_path)
    with pytest.raises(PictureError, match="cannot be rea"):
        read_picture({**manifest(tmp_path)[0], "uri": f"{SOURCE}/2 é#.png"})
    assert len(manifest(tmp_path)) == 2 and not list(tmp_path.glob("*.partial"))
    hub.cut = set()
    after = take(tmp_path)
    assert (after.rows, after.read, after.digest != before.digest) == (3, 1, True)


def test_a_hub_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    hub.server_close()
    hub.shutdown()
    with pytest.raises(SnapshotError, match=f"data.source {SOURCE}: .*cannot be read"):
        take(tmp_path)
