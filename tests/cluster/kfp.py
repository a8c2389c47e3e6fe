"""The endpoints of the KFP API (v2beta1) that ``triptych submit`` uses, on the loopback address.

Every request is held against what KFP publishes: its models, which the installed client was generated with, and, where
``KFP_OPENAPI`` names it, the OpenAPI document itself (``backend/api/v2beta1/swagger/kfp_api_single_file.swagger.json``
in kubeflow/pipelines).
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kfp_server_api

from tests.apiserver.apiserver import NEVER_SKIP

API, OPENAPI = "/apis/v2beta1", "KFP_OPENAPI"
BODIES = {"runs": "V2beta1Run", "experiments": "V2beta1Experiment"}
QUERIES = {
    "experiments": {"page_token", "page_size", "sort_by", "filter", "namespace"},
    "runs": {"experiment_id", "namespace"},
}


class Pipelines:
    """What the server knows, and how it misbehaves."""

    def __init__(self) -> None:
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.wrong: list[str] = []
        """What was asked for that KFP's API does not have."""
        self.tokens: set[str] = set()
        """Those that are valid now; empty: nobody is asked for one."""
        self.trouble: list[tuple[str, int]] = []
        """(method and resource, status): each answers one request so."""
        self.ends: dict[str, list[str]] = {}
        """Run, or ``*`` -> the states that it goes through, the last of which stays."""
        self.looks = 0
        self.on_look: Any = None
        path = os.environ.get(OPENAPI, "")
        assert path or not os.environ.get(NEVER_SKIP), f"{OPENAPI} names no document of KFP's API"
        self.document = json.loads(Path(path).read_text()) if path else None

    def check(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> None:
        """Note what KFP's API does not have."""
        resource, _, name = path.removeprefix(f"{API}/").partition("/")
        for unknown in set(query) - QUERIES.get(resource, set()):
            self.wrong.append(f"{method} {path}: parameter {unknown}")
        if method == "POST":
            known = getattr(kfp_server_api, BODIES[resource]).attribute_map.values()
            self.wrong += [f"{method} {path}: field {field}" for field in set(body) - set(known)]
        if self.document:
            template = f"{API}/{resource}" + (f"/{{{resource[:-1]}_id}}" if name else "")
            operation = self.document["paths"][template][method.lower()]
            asked = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
            self.wrong += [f"{method} {path}: parameter {unknown}" for unknown in set(query) - asked]
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "body":
                    schema = {**closed(parameter["schema"]), "definitions": closed(self.document["definitions"])}
                    found = jsonschema.Draft4Validator(schema).iter_errors(body)
                    self.wrong += [f"{method} {path}: {error.message[:200]}" for error in found]

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, dict[str, Any]]:
        resource, _, name = path.removeprefix(f"{API}/").partition("/")
        if resource == "experiments" and method == "GET":
            wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
            found = [one for one in self.experiments.values() if one["display_name"] == wanted]
            return 200, {"experiments": found, "total_size": len(found)} if found else {}
        if resource == "experiments":
            made = {**body, "experiment_id": str(uuid.uuid4())}
            self.experiments[made["experiment_id"]] = made
            return 200, made
        if method == "POST":
            made = {**body, "run_id": str(uuid.uuid4()), "state": "PENDING"}
            self.runs[made["run_id"]] = made
            return 200, made
        if name not in self.runs:
            return 404, {"code": 5, "message": f"run {name} not found"}
        self.looks += 1
        if self.on_look:
            self.on_look(self)
        states = self.ends.get(name) or self.ends.get("*") or ["RUNNING"]
        self.runs[name]["state"] = states.pop(0) if len(states) > 1 else states[0]
        return 200, self.runs[name]


def closed(schema: Any) -> Any:
    """A schema in which objects with properties have no others."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(inner) for name, inner in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


class Handler(BaseHTTPRequestHandler):
    pipelines: Pipelines
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def handle_one(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url, known = urlsplit(self.path), self.pipelines
        resource = url.path.removeprefix(f"{API}/").partition("/")[0]
        known.asked.append((f"{method} {resource}", self.headers.get("Authorization", "")))
        known.check(method, url.path, parse_qs(url.query), body)
        trouble = next((one for one in known.trouble if one[0] == f"{method} {resource}"), None)
        if trouble:
            known.trouble.remove(trouble)
            answer = trouble[1], {"code": 13, "message": "not now"}
        elif known.tokens and self.headers.get("Authorization", "").removeprefix("Bearer ") not in known.tokens:
            answer = 401, {"code": 16, "message": "the token is not valid"}
        else:
            answer = known.answer(method, url.path, parse_qs(url.query), body)
        content = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")


class KfpServer:
    """A server on a free port."""

    def __init__(self) -> None:
        self.pipelines = Pipelines()
        handler = type("Bound", (Handler,), {"pipelines": self.pipelines})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
