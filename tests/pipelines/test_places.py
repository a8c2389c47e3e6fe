"""Models named by place: a folder, or a commit on a Hub that a server on this machine plays."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from lineage.digests import LineageError
from pipelines.places import local

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": b'{"_class_name": "FluxPipeline"}',
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"weights",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"weights again",
    "whole.safetensors": b"weights once more",
    "vae/diffusion_pytorch_model.bin": b"pickled",
    "README.md": b"words",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as a download asks for."""

    lost: ClassVar[set[str]] = set()
    """Files that it lists and does not give."""
    given: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == f"/api/models/owner/name/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode(), {})
        elif path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self._answer(json.dumps(entries).encode(), {})
        elif (name := path.removeprefix(f"/owner/name/resolve/{COMMIT}/")) in FILES and name not in self.lost:
            content = FILES[name]
            self.given.extend([name] if self.command == "GET" else [])
            self._answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(place: str, endpoint: str, home: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """`local` in a process that takes ``endpoint`` for the Hub."""
    code = "import sys; from pipelines.places import local; print(local(sys.argv[1]))"
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    return subprocess.run(
        [sys.executable, "-c", code, place], env=environment, capture_output=True, text=True, check=False
    )


def test_a_folder_is_its_own_place(tmp_path: Path) -> None:
    assert local(str(tmp_path)) == local(tmp_path) == tmp_path


def test_a_commit_on_the_hub_becomes_a_folder_of_what_models_load(hub: str, tmp_path: Path) -> None:
    place = f"hf://owner/name@{COMMIT}"
    asked = ask(place, hub, tmp_path)
    assert asked.returncode == 0, asked.stderr
    folder = Path(asked.stdout.strip().splitlines()[-1])
    found = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert not any(f.is_symlink() for f in folder.rglob("*"))
    wanted = ("model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors")
    assert found == {name: FILES[name] for name in wanted}
    again = ask(place, hub, tmp_path, offline=True)
    assert again.stdout.strip().splitlines()[-1] == str(folder), "known already: no Hub is needed"


def test_what_was_cut_off_is_taken_up_again(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"hf://owner/name@{COMMIT}"
    monkeypatch.setattr(Hub, "lost", {"vae/config.json"})
    monkeypatch.setattr(Hub, "given", [])
    assert "cannot be fetched" in ask(place, hub, tmp_path).stderr
    assert not list(tmp_path.rglob(COMMIT)), "half a model is no model"
    assert "vae/diffusion_pytorch_model.safetensors" in Hub.given
    monkeypatch.setattr(Hub, "lost", set())
    monkeypatch.setattr(Hub, "given", [])
    assert ask(place, hub, tmp_path).returncode == 0
    assert Hub.given == ["vae/config.json"]


def test_a_hub_that_has_it_not_or_is_not_there_is_named(hub: str, tmp_path: Path) -> None:
    missing = ask(f"hf://owner/other@{COMMIT}", hub, tmp_path)
    assert missing.returncode != 0 and f"hf://owner/other@{COMMIT} cannot be fetched" in missing.stderr
    gone = ask(f"hf://owner/name@{COMMIT}", hub, tmp_path / "other", offline=True)
    assert gone.returncode != 0 and "cannot be fetched" in gone.stderr


@pytest.mark.parametrize("place", ["hf://owner/name", "hf://owner/name@main", "hf://name", "hf://a/b/c@" + COMMIT])
def test_what_may_move_or_names_nothing_is_refused(place: str) -> None:
    with pytest.raises(LineageError, match="hf://"):
        local(place)
