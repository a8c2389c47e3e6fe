"""A channel with champions whose files are there, and servers that follow it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
import yaml
from fastapi import FastAPI

from components.register.register import sign_model
from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing, weights_digest
from lineage.channel.champion import Champion, File
from serving.api import create_app
from serving.run import Server
from serving.settings import Settings
from tests.channel.worlds import DAY, MODEL, nobody
from tests.channel.worlds import World as ChannelWorld
from tests.channel.worlds import champion as document
from tests.servers.governed import free_port
from tests.serving.backends import Painter

SAMPLING = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 64, "width": 64}
FIGURES = tuple(
    {"name": n, "incumbent": a, "candidate": b, "difference": b - a, "lower": 0.01, "upper": 0.2, "margin": 0.02}
    for n, a, b in (("alignment", 0.73, 0.98), ("realism", -0.12, -0.04), ("aesthetics", 0.56, 1.84))
)
PATIENCE = 180.0
ROOT = Path(__file__).parents[2]


@dataclass
class World:
    """A folder with a channel, model folders and states of servers."""

    folder: Path
    withdrawn: list[str] = field(default_factory=list)
    made: dict[str, Champion] = field(default_factory=dict)

    @property
    def channel(self) -> ChannelWorld:
        return ChannelWorld(self.folder)

    def place(self, version: str) -> Path:
        return self.folder / "store" / version

    def settings(self, name: str = "server", **more: Any) -> Settings:
        self.folder.joinpath("root.json").write_bytes(self.channel.root)
        told = {"channel": self.channel.place, "root": self.folder / "root.json", "state": self.folder / name}
        return Settings.read(**told | {"poll": 0.05, "backend": "tests.serving.backends:Painter"} | more)

    def build(
        self, version: str, bundle: Path | None = None, text: str = "", sampling: Any = SAMPLING, **more: str
    ) -> Champion:
        """A model folder, and the document that names it; ``more`` of its configuration."""
        folder = self.place(version)
        if bundle:
            shutil.copytree(bundle, folder / WEIGHTS_FOLDER)
        else:
            (folder / WEIGHTS_FOLDER / "vae").mkdir(parents=True)
            (folder / WEIGHTS_FOLDER / "weights.safetensors").write_text(text or f"weights of {version} " * 100)
            (folder / WEIGHTS_FOLDER / "vae" / "config.json").write_text("{}")
        config = {"model_name": MODEL, "sampling": sampling, **more}
        flavor = {"loader_module": LOADER, "config": config, "data": WEIGHTS_FOLDER}
        (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
        files = listing(folder)
        self.made[version] = document(
            version,
            files=tuple(File(name=f.name, size=f.size, digest=f.digest) for f in files),
            weights=weights_digest(files),
            folder=folder_digest(files),
            place=folder.as_uri(),
            figures=FIGURES,
        )
        return self.made[version]

    def signature(self, version: str) -> bytes:
        """The model's signature by the run key."""
        target = self.folder / f"{version}.sig"
        sign_model(self.place(version) / WEIGHTS_FOLDER, self.folder / "keys" / "run.pem", target)
        return target.read_bytes()

    def publish(self, said: Champion, life: timedelta = DAY, signature: bytes | None = None) -> None:
        said = said.model_copy(update={"withdrawn": tuple(sorted(self.withdrawn))})
        assert self.channel.root
        signature = signature or (self.signature(said.version) if said.version else None)
        self.channel.publisher(life).publish(said, {"model.sig": signature} if signature else {})

    def promote(self, version: str, **more: Any) -> Champion:
        """Build where missing, and make champion."""
        said = self.made.get(version) or self.build(version, **more)
        self.publish(said)
        return said

    def withdraw(self, version: str) -> None:
        """Nobody is champion, and ``version`` is withdrawn."""
        self.withdrawn += [str(self.made[version].weights), str(self.made[version].folder)]
        self.publish(nobody(1000 + len(self.withdrawn), *sorted(self.withdrawn)))


@dataclass
class Running:
    """A server on loopback."""

    url: str
    app: FastAPI
    backend: Painter
    server: Server

    @property
    def slot(self) -> Any:
        return self.app.state.slot

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, **more)

    def draw(self, prompt: str = "a portrait", **more: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/images/generations", json={"prompt": prompt} | more, timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        return dict(self.get("/health/ready").json())

    def wait(self, **wanted: Any) -> dict[str, Any]:
        """Until the readiness details are as wanted."""
        return until(self.status, lambda status: all(status.get(k) == v for k, v in wanted.items()))


def until(look: Any, good: Any) -> Any:
    end = time.monotonic() + PATIENCE
    while not good(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


@contextmanager
def serving(settings: Settings, backend: Painter | None = None) -> Iterator[Running]:
    """Run a server as `triptych serve` does, but in a thread."""
    backend = backend or Painter()
    app = create_app(settings, backend)  # type: ignore[arg-type]
    server = Server(app, settings.model_copy(update={"port": 0}))
    server.config.install_signal_handlers = False  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), bool)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", app, backend, server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@contextmanager
def command_line(log: Path, *asked: str, **told: str) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """`triptych serve` as a process of its own; gives its address, the process and its log."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRIPTYCH_SERVE_POLL": "0.2"} | told
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "serve", "--port", str(port), *asked]
    with log.open("w") as stream:
        ran = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, cwd=log.parent)
        try:
            yield f"http://127.0.0.1:{port}", ran, log
        finally:
            ran.kill()
            ran.wait()


def ready(url: str) -> bool:
    """Whether the server at ``url`` draws."""
    try:
        return requests.get(f"{url}/health/ready", timeout=5).ok
    except requests.ConnectionError:
        return False


def events(answer: requests.Response) -> list[dict[str, Any]]:
    """What a stream of server-sent events said."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
