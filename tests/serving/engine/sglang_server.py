"""A loopback server with the routes of SGLang's multimodal_gen that the backend uses.

Written from the definitions of those routes (``entrypoints/post_training/weights_api.py``, ``entrypoints/openai/
{protocol,image_api}.py``, ``loader/weight_utils.py``): what they ask for, answer and refuse. It holds a real
transformer under diffusers' names, as ``--backend diffusers`` does, and sums it as SGLang does. Its pictures are of one
colour.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image


class Server(ThreadingHTTPServer):
    """Holds a model, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.transformer: Any = None
        self.path = ""
        self.asked: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.broken: dict[str, tuple[int, bytes]] = {}
        """Answers given by force: route -> status and body."""
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def update(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /update_weights_from_disk"""
        from diffusers import SD3Transformer2DModel

        if not body.get("model_path"):
            return 400, {"success": False, "message": "model_path is required"}
        folder = Path(body["model_path"]) / "transformer"
        if not folder.is_dir():
            return 400, {"success": False, "message": f"Failed to download model from {body['model_path']}"}
        self.transformer = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
        self.path = body["model_path"]
        return 200, {"success": True, "message": "Updated 1 modules (transformer)."}

    def checksums(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /get_weights_checksum"""
        modules = {"transformer": self.transformer} if self.transformer is not None else {}
        sums = {}
        for name in body.get("module_names") or list(modules):
            sums[name] = checksum(modules[name]) if name in modules else "not_found"
        return 200, sums

    def images(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /v1/images/generations, one request at a time"""
        if not isinstance(body.get("prompt"), str):
            return 422, {"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]}
        if body.get("response_format", "url") != "b64_json":
            return 400, {"detail": "response_format='url' requires cloud storage to be configured."}
        with self.turn:
            time.sleep(self.seconds)
        width, height = map(int, body.get("size", "1024x1024").split("x"))
        kept = io.BytesIO()
        Image.new("RGB", (width, height), (body.get("seed", 1024) % 256, 9, 9)).save(
            kept, body["output_format"].upper()
        )
        data = [{"b64_json": base64.b64encode(kept.getvalue()).decode(), "url": None, "revised_prompt": body["prompt"]}]
        return 200, {"id": "x", "created": int(time.time()), "data": data, "inference_time_s": self.seconds}


def checksum(module: torch.nn.Module) -> str:
    """``compute_weights_checksum(iter_materialized_weights(module))``."""
    hashed = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters(), key=lambda pair: pair[0]):
        hashed.update(name.encode())
        hashed.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers in JSON."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"route": self.path} | body)
        routes = {
            "/update_weights_from_disk": self.server.update,
            "/get_weights_checksum": self.server.checksums,
            "/v1/images/generations": self.server.images,
        }
        if self.path in self.server.broken:
            status, content = self.server.broken[self.path]
        else:
            status, answer = routes[self.path](body)
            content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def served() -> Iterator[Server]:
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
