"""A real Kubernetes API server, by envtest's convention: ``KUBEBUILDER_ASSETS`` names a folder with the programs etcd,
kube-apiserver and kubectl. There is no scheduler, kubelet or controller: what is asked for is kept, and nothing runs.

``TRIPTYCH_CRDS`` names a folder with the resource definitions of Trainer, JobSet, Kueue, KServe and the Prometheus
operator, as ``crds.json`` beside this file lists them with their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
ASSETS, CRDS = "KUBEBUILDER_ASSETS", "TRIPTYCH_CRDS"
HOW = (
    f"{ASSETS} names no folder with {', '.join(PROGRAMS)}: get them with `setup-envtest use 1.36.x -p path` "
    "(go install sigs.k8s.io/controller-runtime/tools/setup-envtest@latest)"
)
HOW_CRDS = f"{CRDS} names no folder; tests/apiserver/crds.json lists the files"
NEVER_SKIP = "TRIPTYCH_CLUSTER_TESTS"
"""Set in the workflow: without what they need, tests fail there instead of being left out."""
PATIENCE = 180.0
APPLY = "application/apply-patch+yaml"


def assets() -> Path | None:
    """The folder with the programs, if there is one."""
    folder = Path(os.environ.get(ASSETS) or "/usr/local/kubebuilder/bin")
    return folder if all((folder / program).exists() for program in PROGRAMS) else None


def definitions() -> list[Path]:
    """The files of the resource definitions, of which each is the one that ``crds.json`` names."""
    folder, found = os.environ.get(CRDS), []
    if not folder:
        assert not os.environ.get(NEVER_SKIP), HOW_CRDS
        return []
    for name, source in json.loads((Path(__file__).parent / "crds.json").read_text()).items():
        path = Path(folder) / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == source["sha256"], f"{path} is not {source['repository']} at {source['commit']}"
        found.append(path)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ApiServer:
    """etcd and kube-apiserver on the loopback address, with an administrator."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.known: dict[str, dict[str, Any]] = {}
        self.port, store, peer = free_port(), free_port(), free_port()
        self.url, self.token = f"https://127.0.0.1:{self.port}", secrets.token_hex(16)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private, tokens = folder / "sa.pem", folder / "tokens.csv"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        etcd = [
            *(str(programs / "etcd"), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", f"http://127.0.0.1:{store}", "--advertise-client-urls"),
            *(f"http://127.0.0.1:{store}", "--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        ]
        server = [
            *(str(programs / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{store}"),
            *(f"--secure-port={self.port}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            *(f"--cert-dir={folder / 'certificates'}", "--authorization-mode=RBAC", f"--token-auth-file={tokens}"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={private}"),
            *(f"--service-account-signing-key-file={private}", "--service-cluster-ip-range=10.96.0.0/16"),
            *("--endpoint-reconciler-type=none", "--request-timeout=5m"),  # a loaded machine takes its time
        ]
        self.processes = [self._start("etcd", etcd), self._start("kube-apiserver", server)]
        self.kubeconfig = folder / "kubeconfig"
        self._write_kubeconfig(self.kubeconfig, self.token)
        self._await()

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def _await(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            dead = next((process for process in self.processes if process.poll() is not None), None)
            assert dead is None, (self.folder / f"{Path(dead.args[0]).name}.log").read_text()[-3000:]  # type: ignore[index]
            try:
                if self.ask("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"no API server after {PATIENCE} s; see {self.folder}/kube-apiserver.log")

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        certificate = self.folder / "certificates" / "apiserver.crt"
        end = time.monotonic() + PATIENCE
        while not certificate.exists() and time.monotonic() < end:
            time.sleep(0.2)
        ca = base64.b64encode(certificate.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str = "",
        as_user: str = "",
        kind: str = "application/json",
        warnings: list[str] | None = None,
    ) -> tuple[int, Any]:
        """One request; gives status and answer."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {token or self.token}")
        if as_user:
            request.add_header("Impersonate-User", as_user)
            if as_user.startswith("system:serviceaccount:"):
                for group in ("system:serviceaccounts", f"system:serviceaccounts:{as_user.split(':')[2]}"):
                    request.add_header("Impersonate-Group", group)
        data = None
        if body is not None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            request.add_header("Content-Type", kind)
        context = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(request, data, timeout=300, context=context) as answer:
                content, status = answer.read(), answer.status
                if warnings is not None:
                    warnings += answer.headers.get_all("Warning") or []
        except urllib.error.HTTPError as error:
            content, status = error.read(), error.code
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()

    def path_of(self, document: dict[str, Any], namespace: str = "triptych") -> str:
        """Where an object of this kind and name is, by discovery."""
        version, kind = document["apiVersion"], document["kind"]
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        end = time.monotonic() + PATIENCE
        while kind not in self.known.get(root, {}):  # discovery lags behind new definitions
            status, answer = self.ask("GET", root)
            if status == 200:
                self.known[root] = {one["kind"]: one for one in answer["resources"] if "/" not in one["name"]}
            assert kind in self.known.get(root, {}) or time.monotonic() < end, (
                f"{version} {kind} is not served: {answer}"
            )
            if kind not in self.known.get(root, {}):
                time.sleep(0.5)
        resource, metadata = self.known[root][kind], document["metadata"]
        inside = f"/namespaces/{metadata.get('namespace', namespace)}" if resource["namespaced"] else ""
        return f"{root}{inside}/{resource['name']}/{metadata['name']}"

    def apply(self, *documents: dict[str, Any], query: str = "", as_user: str = "") -> list[str]:
        """Server-side apply, with fields checked strictly; gives the warnings, and fails where one is refused."""
        warnings: list[str] = []
        for document in documents:
            path = f"{self.path_of(document)}?fieldManager=test&force=true&fieldValidation=Strict{query}"
            status, answer = self.ask("PATCH", path, document, "", as_user, APPLY, warnings)
            assert status in (200, 201), f"{path}: {answer}"
        return warnings

    def define(self, *files: Path) -> None:
        """Apply resource definitions and wait until they are served."""
        made = [
            document
            for file in files
            for document in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
            if document
        ]
        for one in made:  # large ones: created, which costs the server less than applying
            status, answer = self.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", one)
            assert status in (201, 409), answer
        for one in made:
            group, names = one["spec"]["group"], one["spec"]["names"]
            version = next(v["name"] for v in one["spec"]["versions"] if v["served"])
            end = time.monotonic() + PATIENCE
            while self.ask("GET", f"/apis/{group}/{version}/{names['plural']}")[0] != 200:
                assert time.monotonic() < end, f"{names['plural']}.{group} is not served"
                time.sleep(0.2)
        self.known.clear()

    def may(self, user: str, verb: str, resource: str, namespace: str = "triptych", name: str = "") -> bool:
        """What a service account may do, by the API server's word. ``resource`` as ``resource.group/subresource``."""
        whole, _, sub = resource.partition("/")
        plural, _, group = whole.partition(".")
        attributes = {"verb": verb, "resource": plural, "group": group, "subresource": sub, "name": name}
        spec = {
            "user": f"system:serviceaccount:triptych:{user}",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:triptych", "system:authenticated"],
            "resourceAttributes": {**attributes, "namespace": namespace},
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status, answer = self.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        assert status == 201, answer
        return bool(answer["status"]["allowed"])

    def token_of(self, account: str, namespace: str = "triptych", seconds: int = 3600, audience: str = "") -> str:
        """A token of a service account."""
        spec: dict[str, Any] = {"expirationSeconds": seconds} | ({"audiences": [audience]} if audience else {})
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status, answer = self.ask("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", body)
        assert status == 201, answer
        return str(answer["status"]["token"])

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)
