"""Who may do what: what each service account needs, and what none may have."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor.cluster import Cluster, Fault

NEEDED = {
    "triptych-run": (
        *("create workflowtaskresults.argoproj.io", "get pods", "create trainjobs.trainer.kubeflow.org"),
        *("update experiments.mlflow.kubeflow.org", "update registeredmodels.mlflow.kubeflow.org"),
    ),
    "triptych-gate": ("create workflowtaskresults.argoproj.io", "get pods", "update experiments.mlflow.kubeflow.org"),
    "triptych-submit": (
        *("create runs.pipelines.kubeflow.org", "create experiments.pipelines.kubeflow.org"),
        "update experiments.mlflow.kubeflow.org",
    ),
    "triptych-reconciler": ("update experiments.mlflow.kubeflow.org", "update registeredmodels.mlflow.kubeflow.org"),
    "triptych-promotion": (
        *("create tokenreviews.authentication.k8s.io", "create subjectaccessreviews.authorization.k8s.io"),
    ),
    "triptych-serve": (),
}
FORBIDDEN = ("get secrets", "create pods", "create workflows.argoproj.io", "update configmaps", "create pods/exec")
"""What would let an account get at another role's key."""


def accounts(cluster: Cluster) -> Iterator[Fault]:
    """The service accounts and their rights, in the API server's own words."""
    known = {one["metadata"]["name"] for one in cluster.mine("serviceaccounts")}
    for account, needed in NEEDED.items():
        if account not in known:
            yield Fault(f"there is no service account {account}", "kubectl apply -k the overlay")
            continue
        for what in (*needed, *FORBIDDEN):
            may = _may(cluster, account, what)
            if may is None:
                yield Fault(f"what {account} may do cannot be asked", "ask as somebody who may create access reviews")
                break
            if may and what in FORBIDDEN:
                yield Fault(f"{account} may {what}, and so get at keys", "find the binding: kubectl get rolebindings")
            if not may and what in needed:
                yield Fault(f"{account} may not {what}", "kubectl apply -k the overlay, which has the role")


def _may(cluster: Cluster, account: str, what: str) -> bool | None:
    verb, _, whole = what.partition(" ")
    resource, _, sub = whole.partition("/")
    plural, _, group = resource.partition(".")
    asked = {"verb": verb, "resource": plural, "group": group, "subresource": sub, "namespace": cluster.namespace}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}", "system:authenticated"]
    user = f"system:serviceaccount:{cluster.namespace}:{account}"
    spec = {"user": user, "groups": groups, "resourceAttributes": asked}
    return cluster.review("SubjectAccessReview", spec).get("allowed")


CHECKS = (accounts,)
