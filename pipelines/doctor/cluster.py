"""A cluster to ask, without a way to change it."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RequestError

EXPECTED: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text())
THREADS = 16
PATIENCE = (2.0, 4.0)
"""Seconds to wait for the API server: to connect, and for its answer."""
Fault = tuple[str, dict[str, Any]]
"""Key in ``faults.yaml``, and what its text names."""
MOST = 8.0
"""Seconds within which all questions are asked; the last answer may take two more, see `PATIENCE`."""


@dataclass
class Cluster:
    """What a cluster's API server answers; each question is asked once, but for races that do no harm."""

    api: Any
    namespace: str
    kfp: str
    """KFP's own namespace."""
    server: str = ""
    """The governed server as this machine reaches it; empty: it is asked for nothing that wants a log-in."""
    end: float = field(default_factory=lambda: time.monotonic() + MOST)
    """When the last question may be asked."""
    answers: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """What this user may not read."""

    @classmethod
    def of(cls, context: str, namespace: str, kfp: str = "", server: str = "") -> Cluster:
        """The cluster of a context of the kubeconfig; empty: the current one, or the one that this pod is in.

        Raises:
            RequestError: there is no such context.
        """
        from kubernetes import client, config

        try:
            config.load_kube_config(context=context) if context else config.load_config()
        except (config.ConfigException, OSError) as error:
            raise RequestError(f"no cluster to ask: {error}; kubectl config get-contexts lists yours") from error
        settings = client.Configuration.get_default_copy()
        settings.retries, settings.connection_pool_maxsize = 0, THREADS
        return cls(client.ApiClient(settings), namespace, kfp, server)

    def greet(self) -> Any:
        """The API server's version.

        Raises:
            RequestError: it does not answer, or takes no requests from this user.
        """
        try:
            about = self.get("/version")
        except Exception as error:  # of whatever layer is in the way
            told = f"the API server does not answer: {type(error).__name__}; check VPN, context, token"
            raise RequestError(told) from error
        if about is None:
            raise RequestError("the API server takes no requests from this user: log in again")
        return about

    @property
    def names(self) -> dict[str, str]:
        """What stands for the places in ``faults.yaml``."""
        return {"namespace": self.namespace, "kfp": self.kfp}

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or to the POST of a review; None where there is nothing, or this user may not see it."""
        from kubernetes.client import ApiException

        key = f"{path} {body or ''}"
        if key not in self.answers:
            try:
                answer = self._ask(path, body)[0]
            except ApiException as error:
                answer = None
                if error.status in (401, 403):
                    self.refused.add(path.partition("?")[0])
            self.answers[key] = answer
        return self.answers[key]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Content, status and headers of an answer."""
        timeout = tuple(min(seconds, self.left()) for seconds in PATIENCE)
        asked = {"response_type": "object", "auth_settings": ["BearerToken"], "_request_timeout": timeout}
        return self.api.call_api(path, "POST" if body else "GET", body=body, **asked)

    def left(self, needed: float = 0.0) -> float:
        """Seconds left.

        Raises:
            TimeoutError: less than ``needed``.
        """
        left = self.end - time.monotonic()
        if left <= needed:
            raise TimeoutError(f"no time is left after {MOST:.0f} s")
        return left

    def items(self, path: str) -> list[dict[str, Any]]:
        """The objects of a list."""
        return (self.get(path) or {}).get("items") or []

    def mine(self, kind: str, name: str = "", version: str = "v1") -> Any:
        """An object of the namespace, or the list of them; ``version`` as ``group/version``."""
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        path = f"{root}/namespaces/{self.namespace}/{kind}"
        return self.get(f"{path}/{name}") if name else self.items(path)

    def through(self, service: str, path: str, namespace: str = "") -> Any:
        """What a service answers, through the API server's proxy."""
        return self.get(f"/api/v1/namespaces/{namespace or self.namespace}/services/{service}/proxy{path}")

    def may(self, account: str, what: str) -> bool | None:
        """Whether a service account may do ``what`` (verb, resource.group/subresource); None: this user may not ask."""
        verb, plural, group, sub = re.fullmatch(r"(\S+) ([^./]+)(?:\.([^/]+))?(?:/(.+))?", what).groups("")  # type: ignore[union-attr]
        asked = {"verb": verb, "resource": plural, "group": group, "subresource": sub, "namespace": self.namespace}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
        user = {"user": f"system:serviceaccount:{self.namespace}:{account}", "groups": groups}
        version = "authorization.k8s.io/v1"
        body = {"apiVersion": version, "kind": "SubjectAccessReview", "spec": {**user, "resourceAttributes": asked}}
        status = (self.get(f"/apis/{version}/subjectaccessreviews", body) or {}).get("status", {})
        return bool(status["allowed"]) if "allowed" in status else None

    @functools.cached_property
    def deployments(self) -> dict[str, dict[str, Any]]:
        """All of the cluster, by name."""
        return {one["metadata"]["name"]: one for one in self.items("/apis/apps/v1/deployments?limit=5000")}

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """All of the cluster."""
        return self.items("/api/v1/nodes")

    def skew(self) -> float:
        """Seconds by which the API server's clock is ahead of this one."""
        from email.utils import parsedate_to_datetime

        *_, headers = self._ask("/version")
        return parsedate_to_datetime(headers["Date"]).timestamp() - time.time()


def version_of(text: str) -> tuple[int, ...]:
    """The first version in a text, such as ``(2, 17, 0)`` in an image's tag; empty where there is none."""
    found = re.search(r"(?:^|[:v])v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _told(cluster: Cluster, check: Callable[[Cluster], Iterator[Fault]]) -> list[Fault]:
    """What a check finds, up to where it cannot go on."""
    found: list[Fault] = []
    try:
        for fault in check(cluster):
            found.append(fault)
    except Exception as error:  # of whatever layer is in the way
        found.append(("unasked", {"check": check.__name__, "error": f"{type(error).__name__}: {error}"}))
    return found


def examine(cluster: Cluster) -> list[tuple[str, str]]:
    """All faults, within ten seconds: what is missing or wrong, and what to do.

    Raises:
        RequestError: the API server does not answer.
    """
    from pipelines.doctor import checks, needs

    cluster.greet()
    with ThreadPoolExecutor(THREADS) as pool:  # whose threads end, since no question is asked after `MOST` seconds
        asked = pool.map(functools.partial(_told, cluster), (*checks.CHECKS, *needs.CHECKS))
    found = [fault for faults in asked for fault in faults]
    found += [("unread", {"path": path}) for path in sorted(cluster.refused)]
    told = ((EXPECTED["faults"][key], {**cluster.names, **values}) for key, values in found)
    return [(what.format(**values), remedy.format(**values)) for (what, remedy), values in told]
