"""A Kubernetes API in this process: Kubeflow Trainer's resources, pods and their logs, over HTTP."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}
PATHS = re.compile(
    r"/apis/trainer\.kubeflow\.org/v1alpha1/(?:namespaces/(?P<namespace>[^/]+)/)?(?P<plural>[a-z]+)(?:/(?P<name>.+))?"
)
CLOSED, SILENT = -1, -2
LOG = re.compile(r"/api/v1/namespaces/[^/]+/pods/(?P<pod>[^/]+)/log")
POD = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods/(?P<pod>[^/]+)")


class Cluster:
    """What the API server knows, and how it misbehaves."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runtimes = {"torch-distributed": RUNTIME}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.asked: list[str] = []
        """Method and resource of each request."""
        self.trouble: list[tuple[str, int]] = []
        """(start of an entry of ``asked``, status): each answers one request so; `CLOSED` closes the connection and
        `SILENT` keeps it open without a word."""
        self.keeps: set[str] = set()
        """Jobs with a finalizer: deleting only marks them."""
        self.pods_outlive = False
        """Pods take their time to end: until `vanish` they are there, and with them a job deleted in the foreground."""
        self.on_create: Any = None
        """Called with the name of a job when it is created."""

    def create(self, body: dict[str, Any], namespace: str) -> tuple[int, dict[str, Any]]:
        known = TrainerV1alpha1TrainJob.from_dict(body)
        if known is None or known.to_dict() != body:
            return refusal(422, "the request has fields that TrainJob does not have")
        name = body["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                return refusal(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            body["metadata"] |= {"namespace": namespace, "creationTimestamp": now}
            self.jobs[name] = body
        if self.on_create:
            self.on_create(name)
        return 201, body

    def start(self, job: str, pod: str = "", index: int = 0) -> str:
        """Give a node of the job a running pod."""
        pod = pod or f"{job}-node-0-{index}-x"
        with self.lock:
            self.pods[pod] = {
                "metadata": {
                    "name": pod,
                    "creationTimestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                    "labels": {
                        "jobset.sigs.k8s.io/jobset-name": job,
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(index),
                    },
                },
                "spec": {"containers": [{"name": "node", "image": "any"}]},
                "status": {"phase": "Running"},
            }
            self.logs[pod] = []
        return pod

    def select(self, selector: str) -> list[dict[str, Any]]:
        """The pods whose labels fit each ``label=value`` of the selector."""
        asked = [part.split("=") for part in selector.split(",") if "=" in part]
        with self.lock:
            pods = list(self.pods.values())
        return [pod for pod in pods if all(pod["metadata"]["labels"].get(name) == value for name, value in asked)]

    def write(self, pod: str, line: str) -> None:
        with self.lock:
            self.logs[pod].append(f"{line}\n")

    def end(self, job: str, how: str = "Complete", reason: str = "Done", message: str = "all nodes ended") -> None:
        """End the job's pods and the job."""
        with self.lock:
            for pod in self.pods.values():
                if pod["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] == job:
                    pod["status"]["phase"] = "Succeeded" if how == "Complete" else "Failed"
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            condition = {"type": how, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
            self.jobs[job]["status"] = {"conditions": [condition]}

    def vanish(self) -> None:
        """The pods have ended; what waited for that goes too."""
        with self.lock:
            self.pods.clear()
            for name in [name for name, job in self.jobs.items() if "deletionTimestamp" in job["metadata"]]:
                del self.jobs[name]

    def suspend(self, job: str) -> None:
        """As Kueue does with a job that waits for its turn."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        condition = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "queued"}
        self.jobs[job]["status"] = {"conditions": [condition | {"lastTransitionTime": now}]}


def refusal(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code}


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def answer(self, code: int, body: dict[str, Any] | bytes, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_one(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urlsplit(self.path)
        found = PATHS.fullmatch(url.path)
        what = f"{method} {found['plural'] if found else 'log' if LOG.fullmatch(url.path) else url.path.split('/')[-1]}"
        with self.cluster.lock:
            self.cluster.asked.append(what)
            trouble = next((t for t in self.cluster.trouble if what.startswith(t[0])), None)
            if trouble:
                self.cluster.trouble.remove(trouble)
        if trouble and trouble[1] in (CLOSED, SILENT):
            if trouble[1] == SILENT:
                self.rfile.read(1)  # until the client gives up
            self.close_connection = True
            return
        if trouble:
            self.answer(*refusal(trouble[1], f"{what} is not to be"))
        elif log := LOG.fullmatch(url.path):
            tail = int(parse_qs(url.query)["tailLines"][0])
            self.answer(200, "".join(self.cluster.logs[log["pod"]][-tail:]).encode(), "text/plain")
        elif found:
            self.answer(*self.resource(method, found, body, parse_qs(url.query)))
        elif pod := POD.fullmatch(url.path):
            known = self.cluster.pods.get(pod["pod"])
            self.answer(*((200, known) if known else refusal(404, f'pods "{pod["pod"]}" not found')))
        elif url.path.endswith("/pods"):
            selector = parse_qs(url.query)["labelSelector"][0]
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self.cluster.select(selector)})
        else:
            self.answer(*refusal(404, "not found"))

    def resource(
        self, method: str, found: re.Match[str], body: dict[str, Any], query: dict[str, list[str]]
    ) -> tuple[int, dict[str, Any]]:
        cluster, name = self.cluster, found["name"]
        if found["plural"] == "trainjobs" and method == "POST":
            return cluster.create(body, found["namespace"])
        known = {"trainjobs": cluster.jobs, "clustertrainingruntimes": cluster.runtimes}.get(found["plural"], {})
        with cluster.lock:
            if name not in known:
                return refusal(404, f'{found["plural"]} "{name}" not found')
            if method == "DELETE":
                foreground = query.get("propagationPolicy") == ["Foreground"]
                if name in cluster.keeps or (cluster.pods_outlive and foreground):
                    known[name]["metadata"]["deletionTimestamp"] = known[name]["metadata"]["creationTimestamp"]
                else:
                    del known[name]
                    if not cluster.pods_outlive:
                        cluster.pods.clear()
                return 200, {"kind": "Status", "status": "Success"}
            return 200, known[name]

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_DELETE(self) -> None:
        self.handle_one("DELETE")


class Server:
    """The API on a port of the loopback interface, and a kubeconfig that leads there."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster()
        handler = type("ClusterHandler", (Handler,), {"cluster": self.cluster})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "here", "cluster": {"server": address}}],
                    "users": [{"name": "step", "user": {}}],
                    "contexts": [
                        {"name": "here", "context": {"cluster": "here", "user": "step", "namespace": "portraits"}}
                    ],
                    "current-context": "here",
                }
            )
        )

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
