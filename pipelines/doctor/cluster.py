"""A cluster to ask, without a way to change it."""

from __future__ import annotations

import functools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from pipelines.errors import RequestError

PATIENCE = (2.0, 4.0)
"""Seconds to wait for the API server: to connect, and for its answer."""


@dataclass(frozen=True)
class Fault:
    """Something that is missing or wrong."""

    what: str
    remedy: str


@dataclass
class Cluster:
    """What a cluster's API server answers; each question is asked once."""

    api: Any
    namespace: str
    kfp: str
    """KFP's own namespace."""
    answers: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """What this user may not read."""
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, context: str, namespace: str, kfp: str) -> Cluster:
        """The cluster of a context of the kubeconfig; empty: the current one, or the one that this pod is in.

        Raises:
            RequestError: there is no such context.
        """
        from kubernetes import client, config

        try:
            config.load_config(context=context or None)
        except (config.ConfigException, OSError) as error:
            raise RequestError(f"no cluster to ask: {error}; kubectl config get-contexts lists yours") from error
        settings = client.Configuration.get_default_copy()
        settings.retries = 0
        return cls(client.ApiClient(settings), namespace, kfp)

    def get(self, path: str) -> Any:
        """The answer to a GET; None where there is nothing, or this user may not see it."""
        return self._ask("GET", path)

    def review(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        """The status of an access review, which keeps nothing."""
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        made = self._ask("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)
        return (made or {}).get("status", {})  # type: ignore[no-any-return]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        from kubernetes.client import ApiException

        key = f"{path} {body or ''}"
        if key in self.answers:
            return self.answers[key]
        try:
            answer = self.api.call_api(
                path,
                method,
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=PATIENCE,
            )
        except ApiException as error:
            answer = None
            if error.status in (401, 403):
                with self._lock:
                    self.refused.add(path.partition("?")[0])
        with self._lock:
            self.answers[key] = answer
        return answer

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

    @functools.cached_property
    def deployments(self) -> dict[str, dict[str, Any]]:
        """All of the cluster, by name."""
        return {one["metadata"]["name"]: one for one in self.items("/apis/apps/v1/deployments?limit=5000")}

    def skew(self) -> float | None:
        """Seconds by which the API server's clock is ahead of this one."""
        from email.utils import parsedate_to_datetime

        _, _, headers = self.api.call_api(
            "/version", "GET", response_type="object", auth_settings=["BearerToken"], _request_timeout=PATIENCE
        )
        date = headers.get("Date")
        return parsedate_to_datetime(date).timestamp() - time.time() if date else None


def version_of(text: str) -> tuple[int, ...]:
    """The first version in a text, such as ``(2, 17, 0)`` in an image's tag; empty where there is none."""
    found = re.search(r"(?:^|[:v])v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def examine(cluster: Cluster, patience: float = 10.0) -> list[Fault]:
    """All faults, at latest after ``patience`` seconds.

    Raises:
        RequestError: the API server does not answer.
    """
    from pipelines.doctor import installation, platform, rights

    try:
        about = cluster.get("/version")
    except Exception as error:  # of whatever layer is in the way
        raise RequestError(
            f"the API server does not answer: {type(error).__name__}; check VPN, context, token"
        ) from error
    if about is None:
        raise RequestError("the API server takes no requests from this user: log in again")
    checks = [*platform.CHECKS, *installation.CHECKS, *rights.CHECKS]
    pool, found = ThreadPoolExecutor(16), []
    asked = [(check, pool.submit(lambda c: list(c(cluster)), check)) for check in checks]
    end = time.monotonic() + patience
    for check, answer in asked:
        try:
            found += answer.result(timeout=max(0.0, end - time.monotonic()))
        except Exception as error:
            what = f"{check.__name__.replace('_', ' ')} could not be asked: {type(error).__name__}: {error}"
            found.append(Fault(what, "ask again; the API server may be slow, or answer what is not expected"))
    pool.shutdown(wait=False, cancel_futures=True)
    found += [
        Fault(f"you may not read {path}", "ask the cluster's administrators for the right to view it")
        for path in sorted(cluster.refused)
    ]
    return found
