"""What the steps' table asks for: accelerators, nodes, queues with a quota, a runtime."""

from __future__ import annotations

import yaml

from pipelines.cluster import ClusterSettings
from pipelines.doctor.checks import Found, at
from pipelines.doctor.cluster import Cluster
from pipelines.steps import STEPS

QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"


def resources(cluster: Cluster) -> Found:
    """Everything that the configuration in the cluster names."""
    from pydantic import ValidationError

    text = at(cluster.mine("configmaps", "triptych-configuration"), "data/retrain.yaml")
    content, known = yaml.safe_load(text or "{}"), {"root": "-", "images": {"data": "-", "torch": "-"}}
    try:
        table = ClusterSettings.model_validate({**known, **content.get("cluster", {})})
    except (ValidationError, AttributeError, TypeError) as error:
        yield "configuration", {"error": str(error).splitlines()[0]}
        return
    rows = [table.needs(name) for name, step in STEPS.items() if step.image == "torch"]
    job = content.get("trainjob") or {}
    asked = {(str(row.node_selector), row.accelerator): row for row in rows if row.accelerators}.values()
    for row in asked:
        fitting = [n for n in cluster.nodes if row.node_selector.items() <= (at(n, "metadata/labels") or {}).items()]
        given = [int((at(node, "status/allocatable") or {}).get(row.accelerator, 0)) for node in fitting]
        if not fitting:
            yield "labels", {"labels": dict(row.node_selector)}
        elif max(given) < row.accelerators:
            yield "accelerators", {"count": row.accelerators, "resource": row.accelerator}
    runtime = job.get("runtime")
    if runtime and not cluster.get(f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{runtime}"):
        yield "runtime", {"name": runtime}
    named = {labels[QUEUE] for labels in [*(row.labels for row in rows), job.get("labels", {})] if QUEUE in labels}
    for name in sorted(named):
        found = cluster.get(f"{KUEUE}/namespaces/{cluster.namespace}/localqueues/{name}")
        behind = at(found, "spec/clusterQueue")
        groups = at(cluster.get(f"{KUEUE}/clusterqueues/{behind}"), "spec/resourceGroups") if found else None
        covered = {resource for group in groups or [] for resource in group["coveredResources"]}
        if found is None:
            yield "queue", {"name": name}
        elif groups is None:
            yield "cluster-queue", {"name": name, "behind": behind}
        elif missing := sorted({row.accelerator for row in asked} - covered):
            yield "no-quota", {"behind": behind, "missing": ", ".join(missing)}
    for quota in cluster.mine("resourcequotas"):
        hard, used = (at(quota, f"status/{which}") or {} for which in ("hard", "used"))
        if full := [name for name in hard if hard[name] == used.get(name)]:
            yield "quota", {"name": quota["metadata"]["name"], "full": ", ".join(full)}


CHECKS = (resources,)
