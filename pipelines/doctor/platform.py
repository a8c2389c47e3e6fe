"""What the cluster and Kubeflow must offer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import yaml

from pipelines.doctor.cluster import Cluster, Fault, version_of

KUBERNETES = (1, 36)
"""The first in which policies that change objects (MutatingAdmissionPolicy) are on."""
SKEW = 30.0
"""Seconds by which clocks may differ: leases, tokens and the channel expire by them."""
PARTS = (
    ("KFP", "ml-pipeline", (2, 15), "workflows.argoproj.io", True),
    ("Kubeflow Trainer", "kubeflow-trainer-controller-manager", (2, 1), "trainjobs.trainer.kubeflow.org", False),
    ("JobSet", "jobset-controller-manager", (0, 8), "jobsets.jobset.x-k8s.io", False),
    ("Kueue", "kueue-controller-manager", (0, 14), "localqueues.kueue.x-k8s.io", False),
    ("KServe", "kserve-controller-manager", (0, 16), "inferenceservices.serving.kserve.io", False),
    ("the Prometheus operator", "prometheus-operator", (0, 80), "servicemonitors.monitoring.coreos.com", False),
)
"""Name, Deployment, least version, a CRD of it, whether nothing goes without it."""


def versions(cluster: Cluster) -> Iterator[Fault]:
    """Kubernetes itself."""
    found = version_of(str(cluster.get("/version").get("gitVersion", "")))
    if found[:2] < KUBERNETES:
        told, wanted = (".".join(map(str, version)) for version in (found[:2], KUBERNETES))
        yield Fault(f"Kubernetes is {told}, and {wanted} is needed", "upgrade the cluster: the gate's account needs it")


def clock(cluster: Cluster) -> Iterator[Fault]:
    """The API server's clock and this machine's."""
    skew = cluster.skew()
    if skew is not None and abs(skew) > SKEW:
        yield Fault(f"the cluster's clock is {skew:+.0f} s off this machine's", "have both follow NTP")


def parts(cluster: Cluster) -> Iterator[Fault]:
    """Kubeflow's parts: their CRDs, controllers and versions."""
    for name, deployment, least, crd, always in PARTS:
        served = cluster.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}")
        controller = cluster.deployments.get(deployment)
        if served is None:
            use = "no run can start" if always else "leave out the component of the overlay that uses it, or"
            yield Fault(f"{name} is not installed: no CRD {crd}", f"{use}: install {name} {_told(least)} or newer")
            continue
        if controller is None:
            yield Fault(
                f"{name} has CRDs and no Deployment {deployment}", f"install its controller anew, or {crd} lies"
            )
            continue
        images = [one["image"] for one in controller["spec"]["template"]["spec"]["containers"]]
        found = next((version for image in images if (version := version_of(image))), ())
        if found and found < least:
            yield Fault(f"{name} is {_told(found)}, and {_told(least)} is needed", f"upgrade {name}")
        if not controller.get("status", {}).get("availableReplicas"):
            yield Fault(
                f"{name} does not run: {deployment} has no pod that is ready", f"kubectl describe: {deployment}"
            )


def _told(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def retries(cluster: Cluster) -> Iterator[Fault]:
    """Whether Argo tries failed steps again: its default decides, whatever KFP's API says."""
    settings = cluster.get(f"/api/v1/namespaces/{cluster.kfp}/configmaps/workflow-controller-configmap")
    if settings is None:
        yield Fault(
            f"there is no workflow-controller-configmap in {cluster.kfp}",
            "name KFP's namespace by --kfp-namespace, or install KFP",
        )
        return
    defaults = yaml.safe_load((settings.get("data") or {}).get("workflowDefaults") or "{}") or {}
    policy = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {}).get("retryPolicy", "")
    if policy == "OnError":
        yield Fault(
            "Argo's retryPolicy is OnError: lost pods are tried again, steps that exit with an error are not",
            "set workflowDefaults.spec.templateDefaults.retryStrategy.retryPolicy to Always, or accept it",
        )


def kfp(cluster: Cluster) -> Iterator[Fault]:
    """Whether KFP's API answers."""
    if "ml-pipeline" in cluster.deployments and not cluster.through(
        "ml-pipeline:8888", "/apis/v2beta1/healthz", cluster.kfp
    ):
        yield Fault("KFP's API does not answer its health check", f"kubectl -n {cluster.kfp} logs deploy/ml-pipeline")


def names(cluster: Cluster) -> Iterator[Fault]:
    """The cluster's DNS."""
    label = "labelSelector=kubernetes.io/service-name%3Dkube-dns"
    path = f"/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices?{label}"
    if not any(one.get("endpoints") for one in cluster.items(path)):
        yield Fault(
            "the cluster's DNS has no endpoints: no step will find the server", "kubectl -n kube-system get pods"
        )


def nodes(cluster: Cluster) -> Iterator[Fault]:
    """Nodes that take pods."""
    found = cluster.items("/api/v1/nodes")
    ready = [
        node
        for node in found
        if not node["spec"].get("unschedulable")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", []))
    ]
    if not ready:
        yield Fault(f"none of {len(found)} nodes takes pods", "kubectl get nodes; start or uncordon some")


def stale(text: str, hours: float) -> float | None:
    """By how many hours a time (ISO 8601) is older than ``hours``; None where it is not."""
    age = (datetime.now(UTC) - datetime.fromisoformat(text.replace("Z", "+00:00"))).total_seconds() / 3600
    return age if age > hours else None


CHECKS = (versions, clock, parts, retries, kfp, names, nodes)
