"""Objects that tests put into an API server."""

from __future__ import annotations

import base64
from typing import Any

from tests.apiserver.apiserver import ApiServer


def put(api: ApiServer, document: dict[str, Any], status: dict[str, Any] | None = None) -> None:
    """Apply an object, and set its status as a controller would."""
    api.apply(document)
    if status is not None:
        path = f"{api.path_of(document)}/status"
        done = api.ask("PATCH", path, {"status": status}, kind="application/merge-patch+json")
        assert done[0] == 200, done


def deployment(name: str, image: str, namespace: str) -> dict[str, Any]:
    labels = {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": image}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }


def held(kind: str, name: str, namespace: str = "triptych", **data: str) -> dict[str, Any]:
    """A Secret or ConfigMap."""
    if kind == "Secret":
        data = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "data": data}
