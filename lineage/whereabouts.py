"""Where a step runs on a cluster, for its record: the pod, and the image that really ran in it."""

from __future__ import annotations

import os

PREFIX = "TRIPTYCH_"
FIELDS = {
    "POD": "metadata.name",
    "POD_UID": "metadata.uid",
    "NODE": "spec.nodeName",
    "NAMESPACE": "metadata.namespace",
    "SERVICE_ACCOUNT": "spec.serviceAccountName",
}
"""Environment variables, without `PREFIX`, by which a compiled pipeline tells a step where it runs -> field of its
pod."""
MAIN = "main"
"""The container of a pod in which KFP runs the step."""
PATIENCE = (3.0, 10.0)
"""Seconds to wait for the API server: to connect, and for its answer."""


def whereabouts() -> dict[str, str]:
    """What is known of the place: ``pod``, ``pod_uid``, ``node``, ``namespace``, ``service_account`` and
    ``image_digest``; nothing outside of a cluster.

    ``image_digest`` is the image that the kubelet ran, as ``registry/name@sha256:…``; where the API server does not
    say, it begins with ``unknown:`` and gives the reason.
    """
    found = {name.lower(): value for name in FIELDS if (value := os.environ.get(PREFIX + name))}
    if "pod" in found:
        found["image_digest"] = _image_that_ran(found.get("namespace", ""), found["pod"])
    return found


def _image_that_ran(namespace: str, pod: str) -> str:
    from kubernetes import client, config

    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config()
        else:
            config.load_kube_config()
        status = client.CoreV1Api().read_namespaced_pod(pod, namespace, _request_timeout=PATIENCE).status
        running = {one.name: one.image_id for one in status.container_statuses or []}
        image = running.get(MAIN) or (next(iter(running.values())) if len(running) == 1 else "")
        return str(image or f"unknown: the pod does not say yet what its container {MAIN} runs")
    except client.ApiException as error:
        refused = f"the API server answered {error.status} {error.reason}"
        return f"unknown: {refused}; the service account needs get on pods in namespace {namespace}"
    except Exception as error:  # of whatever layer is in the way: a step does not fail for it, its record says so
        return f"unknown: the API server was not reached: {type(error).__name__}: {error}"
