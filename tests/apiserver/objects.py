"""Objects that tests put into an API server."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Protocol


class Api(Protocol):
    """Where objects are put."""

    def apply(self, *documents: dict[str, Any]) -> Any: ...

    def path_of(self, document: dict[str, Any]) -> str: ...

    def ask(self, method: str, path: str, body: Any = None, *, kind: str = "") -> tuple[int, Any]: ...


def put(api: Api, document: dict[str, Any], status: dict[str, Any] | None = None) -> None:
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


def mend(api: Api, store: str, queues: bool = True) -> None:
    """Make what the manifests leave to others: Kubeflow, nodes, storage and secrets, as far as objects alone can.

    Args:
        store: the address of the buckets.
        queues: Kueue's resources are known.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for role in ("run", "gate", "promotion", "witness"):
        put(api, held("Secret", f"triptych-{role}-key", **{f"{role}.pem": "k", f"{role}.pub": "k"}))
    put(api, held("Secret", "triptych-database", mlflow="u", ledger="u"))
    put(api, held("Secret", "triptych-serve-key", **{"api-key": "k"}))
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "canary", "AWS_ENDPOINT_URL_S3": store}
    put(api, held("Secret", "triptych-s3", **keys))
    put(api, held("ConfigMap", "triptych-trust", **{"root-id": "0" * 64, "channel-root.json": "{}"}))
    meta = {"name": "shared", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    put(api, {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": meta, "provisioner": "none"})
    put(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}})
    images = ("ghcr.io/kubeflow/kfp-api-server:2.17.0", "t:v2.3.0", "j:v0.13.0", "k:v0.17.0", "s:v0.21.0", "p:v0.90.0")
    names = (
        *("ml-pipeline", "kubeflow-trainer-controller-manager", "jobset-controller-manager"),
        *("kueue-controller-manager", "kserve-controller-manager", "prometheus-operator"),
    )
    for name, image in zip(names, images, strict=True):
        put(api, deployment(name, image, "kubeflow"), {"replicas": 1, "availableReplicas": 1, "readyReplicas": 1})
    defaults = "spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: Always}}}"
    put(api, held("ConfigMap", "workflow-controller-configmap", "kubeflow", workflowDefaults=defaults))
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "workflows.argoproj.io"},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": {"plural": "workflows", "singular": "workflow", "kind": "Workflow"},
            "versions": [
                {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
            ],
        },
    }
    put(api, crd)
    labels = {"nvidia.com/gpu.present": "true"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-1", "labels": labels}}
    ready = {"type": "Ready", "status": "True", "reason": "x", "message": "x", "lastTransitionTime": now}
    put(api, node, {"conditions": [ready], "capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}})
    api.ask("PATCH", "/api/v1/nodes/gpu-1", {"spec": {"taints": None}}, kind="application/merge-patch+json")
    service = {"name": "dns", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}}
    slice_ = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": service, "addressType": "IPv4"}
    put(api, {**slice_, "endpoints": [{"addresses": ["10.0.0.1"]}]})
    quota = [{"name": "cpu", "nominalQuota": "64"}, {"name": "nvidia.com/gpu", "nominalQuota": "8"}]
    group = {"coveredResources": ["cpu", "nvidia.com/gpu"], "flavors": [{"name": "gpu", "resources": quota}]}
    kueue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": "triptych"}}
    if queues:
        put(api, {**kueue, "spec": {"resourceGroups": [group]}})
