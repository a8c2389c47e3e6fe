"""What an API server answers to whoever only reads: the objects that were put here, on the loopback address, and the
trouble that an API server may have. The manifests themselves are tried on a real one, in `tests.apiserver`."""

from __future__ import annotations

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from pipelines.doctor.cluster import EXPECTED

PLURALS = {"NetworkPolicy": "networkpolicies", "StorageClass": "storageclasses"}
CLUSTER_WIDE = (
    *("Namespace", "ClusterRole", "ClusterRoleBinding", "StorageClass", "Node", "CustomResourceDefinition"),
    *("ClusterTrainingRuntime", "ClusterQueue", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
)
LISTS = (
    *("nodes", "pods", "deployments", "storageclasses", "endpointslices"),
    *("resourcequotas", "serviceaccounts", "workflows"),
)


def plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind.lower()[:-1]}ies" if kind.endswith("Policy") else f"{kind.lower()}s")


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    made = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        made[key] = merged(made.get(key), value)
    return {key: value for key, value in made.items() if value is not None}


class Answers:
    """Objects by path. It takes what `tests.apiserver.objects.put` sends to the real server too."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {"/version": {"gitVersion": "v1.36.0"}}
        self.asked: list[str] = []
        """Method and path of each request."""
        self.may = {(account, what) for account, needed in EXPECTED["accounts"].items() for what in needed}
        """Service accounts and what they may do."""
        self.status: dict[str, int] = {}
        """Path -> the status that it is answered with, whatever lies there."""
        self.late = 0.0
        """Seconds before an answer."""
        self.ahead = 0.0
        """Seconds by which the clock is wrong."""

    def path_of(self, document: dict[str, Any]) -> str:
        version, kind, about = document["apiVersion"], document["kind"], document["metadata"]
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        inside = "" if kind in CLUSTER_WIDE else f"/namespaces/{about.get('namespace', 'triptych')}"
        return f"{root}{inside}/{plural(kind)}/{about['name']}"

    def apply(self, *documents: dict[str, Any]) -> None:
        for document in documents:
            path = self.path_of(document)
            self.objects[path] = merged(self.objects.get(path), document)
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.objects[path]["metadata"].setdefault("creationTimestamp", made)

    def ask(self, method: str, path: str, body: Any = None, **_: Any) -> tuple[int, Any]:
        """A change, as an administrator makes one."""
        path = path.removesuffix("/status")
        if path not in self.objects:
            return 404, None
        if method == "DELETE":
            return 200, self.objects.pop(path)
        self.objects[path] = merged(self.objects[path], body)
        return 200, self.objects[path]

    def listed(self, path: str, selector: str) -> list[Any]:
        """The objects of a list; without a namespace, those of all."""
        root, _, kind = path.rpartition("/")
        wanted = [part.partition("=")[::2] for part in selector.split(",") if part]
        found = [
            one
            for place, one in self.objects.items()
            if place.startswith(f"{root}/") and place.rpartition("/")[0].endswith(f"/{kind}") and "/proxy/" not in place
        ]
        labels = [(one, one["metadata"].get("labels") or {}) for one in found]
        return [one for one, its in labels if all(its.get(label) == value for label, value in wanted)]

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        account, asked = spec["user"].rpartition(":")[2], spec["resourceAttributes"]
        what = f"{asked['verb']} {asked['resource']}"
        what += f".{asked['group']}" if asked["group"] else ""
        what += f"/{asked['subresource']}" if asked["subresource"] else ""
        return {"status": {"allowed": (account, what) in self.may}}


class Handler(BaseHTTPRequestHandler):
    known: Answers
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer, or each waits for the other side's delayed acknowledgement

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.known.ahead, usegmt=True)

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        known, url = self.known, urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known.asked.append(f"{self.command} {url.path}")
        time.sleep(known.late)
        if status := known.status.get(url.path):
            self.answer(status, {"kind": "Status", "status": "Failure", "code": status, "message": "so it is told"})
        elif self.command == "POST":
            self.answer(201, known.review(json.loads(content)["spec"]))
        elif url.path in known.objects or self.command == "HEAD":
            self.answer(200, known.objects.get(url.path))
        elif found := known.listed(url.path, parse_qs(url.query).get("labelSelector", [""])[0]):
            self.answer(200, {"items": found})
        elif url.path.rpartition("/")[2] in LISTS:
            self.answer(200, {"items": []})
        else:
            self.answer(404, {"kind": "Status", "status": "Failure", "code": 404})

    do_GET = do_POST = do_HEAD = handle_one


class AnswersServer:
    """Them on a free port, and a kubeconfig whose context ``test`` leads there."""

    def __init__(self, folder: Path) -> None:
        self.known = Answers()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"known": self.known}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.kubeconfig = folder / "kubeconfig"
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [context],
            "current-context": "test",
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
