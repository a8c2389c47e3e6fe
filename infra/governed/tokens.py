"""Who asks, by the word of a Kubernetes API server: ``TRIPTYCH_AUTHENTICATION=kubernetes``.

A caller shows a token (``Authorization: Bearer …``; MLflow's clients do with ``MLFLOW_TRACKING_AUTH=kubernetes``). The
API server says in a TokenReview whose it is, and in a SubjectAccessReview whether that user may use the registry: the
resources of the group ``mlflow.kubeflow.org`` in this server's namespace, as MLflow's own Kubernetes plug-in names
them. ``get`` on experiments to read, ``update`` for all that writes, ``update`` on registeredmodels for moves.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from threading import Lock
from typing import Any

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.types import Scope

from infra.governed.identity import Admit
from infra.governed.settings import USER
from lineage.digests import LineageError

GROUP = "mlflow.kubeflow.org"
REMEMBERED = 60.0
"""Seconds for which a review counts: how long a token that was revoked goes on."""
MOST = 1024
"""Reviews that are remembered."""
PATIENCE = (3.0, 10.0)
"""Seconds to wait for the API server: to connect, and for its answer."""


class UnreachableError(LineageError):
    """The API server gives no answer, so nobody is let in."""


class Reviewer:
    """Asks the API server; safe to use from several threads."""

    def __init__(self, namespace: str, audience: str = "") -> None:
        """Find the API server: in the cluster, else by KUBECONFIG.

        Args:
            namespace: whose resources of `GROUP` say what a user may do.
            audience: for whom a token must have been made; empty: for the API server.
        """
        from kubernetes import client, config

        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config()
        else:
            config.load_kube_config()
        self.namespace, self.audience = namespace, audience
        self._api, self._lock = client.ApiClient(), Lock()
        self._known: dict[bytes, tuple[float, dict[str, Any]]] = {}

    def user(self, token: str) -> dict[str, Any] | None:
        """Whose token this is (``username``, ``uid``, ``groups``); None: nobody's.

        Raises:
            UnreachableError: the API server does not say.
        """
        spec = {"token": token} | ({"audiences": [self.audience]} if self.audience else {})
        status = self._review("authentication.k8s.io/v1", "TokenReview", spec)
        good = status.get("authenticated") and (not self.audience or self.audience in status.get("audiences", []))
        return status["user"] if good and status.get("user", {}).get("username") else None

    def may(self, user: dict[str, Any], verb: str, resource: str, name: str = "") -> bool:
        """Whether a user may do something with a resource of `GROUP`.

        Raises:
            UnreachableError: the API server does not say.
        """
        asked = {"group": GROUP, "resource": resource, "verb": verb, "name": name, "namespace": self.namespace}
        told = {key: user[key] for key in ("uid", "groups", "extra") if user.get(key)}
        spec = {**told, "user": user["username"], "resourceAttributes": asked}
        return bool(self._review("authorization.k8s.io/v1", "SubjectAccessReview", spec).get("allowed"))

    def _review(self, version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        key, now = hashlib.sha256(repr((kind, spec)).encode()).digest(), time.monotonic()
        with self._lock:
            if key in self._known and now - self._known[key][0] < REMEMBERED:
                return self._known[key][1]
        body = {"apiVersion": version, "kind": kind, "spec": spec}
        try:
            made = self._api.call_api(
                f"/apis/{version}/{kind.lower()}s",
                "POST",
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=PATIENCE,
            )
        except Exception as error:  # of whatever layer is in the way; its text may hold the token
            raise UnreachableError(f"the API server does not answer a {kind}: {type(error).__name__}") from None
        with self._lock:
            while len(self._known) >= MOST:
                del self._known[next(iter(self._known))]
            self._known[key] = now, made.get("status", {})
        return made.get("status", {})  # type: ignore[no-any-return]


@functools.cache
def reviewer(namespace: str, audience: str) -> Reviewer:
    """The one of this process."""
    return Reviewer(namespace, audience)


def shown_token(headers: Sequence[bytes]) -> str:
    """The token in the values of the header Authorization; empty where there is not exactly one."""
    kind, _, token = headers[0].decode("latin1").partition(" ") if len(headers) == 1 else ("", "", "")
    return token.strip() if kind.lower() == "bearer" else ""


def by_token(reviewer: Reviewer) -> Admit:
    """Admits whose token the API server knows and who may use the registry, and names them to what stands behind."""

    async def admit(scope: Scope) -> None:
        try:
            user = await to_thread.run_sync(_admitted, reviewer, scope)
        except UnreachableError as error:
            raise HTTPException(503, str(error)) from error
        scope["headers"].append((USER.encode(), user.encode("latin1", "replace")))

    return admit


def _admitted(reviewer: Reviewer, scope: Scope) -> str:
    challenge = {"WWW-Authenticate": "Bearer"}
    shown = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if not (token := shown_token(shown)):
        told = "show one token of the cluster: Authorization: Bearer … (MLFLOW_TRACKING_AUTH=kubernetes)"
        raise HTTPException(401, told, challenge)
    if (user := reviewer.user(token)) is None:
        raise HTTPException(401, "the API server does not know this token, or it has expired", challenge)
    name, verb = str(user["username"]), "get" if scope.get("method") in ("GET", "HEAD", "OPTIONS") else "update"
    if not reviewer.may(user, verb, "experiments"):
        raise HTTPException(403, f"{name} may not {verb} experiments of {GROUP} in namespace {reviewer.namespace}")
    return name
