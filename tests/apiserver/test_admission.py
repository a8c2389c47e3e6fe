"""Who gets the gate key, by the admission policies on a real API server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.apiserver.apiserver import PATIENCE, ApiServer
from tests.apiserver.conftest import rendered

WORKFLOW = "workflows.argoproj.io/workflow"
ARGO = "system:serviceaccount:kubeflow:argo"


def step_pod(step: str = "gate", image: str = "", **changes: Any) -> dict[str, Any]:
    """A pod as Argo makes one for a step."""
    data = next(one for one in rendered("production") if one["metadata"]["name"] == "triptych-admission")["data"]
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spec = {
        "serviceAccountName": "triptych-run",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": image or data["image"], "securityContext": security}],
    }
    labels = {"triptych.dev/step": step, WORKFLOW: "retraining-x"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step", "labels": labels}, "spec": spec | changes}


KEY_VOLUME = [{"name": "key", "secret": {"secretName": "triptych-gate-key"}}]
PROJECTED = [{"name": "key", "projected": {"sources": [{"secret": {"name": "triptych-gate-key"}}]}}]


@pytest.fixture(scope="module")
def argo(api: ApiServer, warnings: list[str]) -> str:
    """Argo's controller, which may make pods, as KFP's manifests say."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "argo", "namespace": "triptych"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "argo", "namespace": "triptych"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "argo"},
        "subjects": [{"kind": "User", "name": ARGO, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    api.apply(role, binding)
    end = time.monotonic() + PATIENCE
    while not in_force(api):  # the API server reads policies some time after it has accepted them
        assert time.monotonic() < end, "the API server has the policies, and does not act on them"
        time.sleep(0.5)
    return ARGO


def in_force(api: ApiServer) -> bool:
    """Whether pods are refused, and changed, by the two policies."""
    refused = make(api, step_pod("none", volumes=KEY_VOLUME), ARGO)[0] != 201
    _, made = make(api, step_pod(), ARGO)
    return refused and bool(made["spec"]["serviceAccountName"] == "triptych-gate")


def make(api: ApiServer, pod: dict[str, Any], user: str) -> tuple[int, Any]:
    return api.ask("POST", "/api/v1/namespaces/triptych/pods?dryRun=All", pod, as_user=user)


def test_the_gate_step_gets_its_account_and_its_key(api: ApiServer, argo: str) -> None:
    status, answer = make(api, step_pod(volumes=KEY_VOLUME), argo)
    assert status == 201, answer
    assert answer["spec"]["serviceAccountName"] == answer["spec"]["serviceAccount"] == "triptych-gate"


def test_another_step_keeps_the_account_of_the_run(api: ApiServer, argo: str) -> None:
    status, answer = make(api, step_pod("evaluate", "anything"), argo)
    assert status == 201 and answer["spec"]["serviceAccountName"] == "triptych-run"


def env(name: str) -> list[dict[str, Any]]:
    return [{"name": "K", "valueFrom": {"secretKeyRef": {"name": name, "key": "gate.pem"}}}]


def container(**more: Any) -> dict[str, Any]:
    return {**step_pod()["spec"]["containers"][0], **more}


@pytest.mark.parametrize(
    "changes",
    [
        {"volumes": KEY_VOLUME},
        {"volumes": PROJECTED},
        {"containers": [container(env=env("triptych-gate-key"))]},
        {"containers": [container(envFrom=[{"secretRef": {"name": "triptych-gate-key"}}])]},
        {"initContainers": [container(name="init", env=env("triptych-gate-key"))]},
        {"imagePullSecrets": [{"name": "triptych-gate-key"}]},
        {"volumes": KEY_VOLUME, "serviceAccountName": "triptych-promotion"},
    ],
    ids=["volume", "projected", "variable", "all variables", "init container", "pull secret", "another account"],
)
def test_no_other_step_gets_the_gate_key(api: ApiServer, argo: str, changes: dict[str, Any]) -> None:
    for user in (argo, ""):  # and neither does an administrator
        status, answer = make(api, step_pod("evaluate", **changes), user)
        assert status == 403 and "triptych-gate" in answer["message"], answer


def test_nobody_but_argo_makes_a_pod_of_the_gate(api: ApiServer, argo: str) -> None:
    status, answer = make(api, step_pod(volumes=KEY_VOLUME), "")
    assert status == 403 and "made by" in answer["message"]


def test_the_gate_runs_in_its_image_only(api: ApiServer, argo: str) -> None:
    status, answer = make(api, step_pod(image="registry.example/other@sha256:1", volumes=KEY_VOLUME), argo)
    assert status == 403 and "the gate runs in" in answer["message"]


def test_no_container_but_argos_stands_beside_the_gate(api: ApiServer, argo: str) -> None:
    beside = [container(), container(name="wait", image="quay.io/argoproj/argoexec:v4.0.8")]
    assert make(api, step_pod(volumes=KEY_VOLUME, containers=beside), argo)[0] == 201
    other = [container(), container(name="other", image="registry.example/other@sha256:1")]
    status, answer = make(api, step_pod(volumes=KEY_VOLUME, containers=other), argo)
    assert status == 403 and "the gate runs in" in answer["message"]


def test_without_its_parameters_the_policy_refuses(api: ApiServer, argo: str) -> None:
    kept = next(one for one in rendered("production") if one["metadata"]["name"] == "triptych-admission")
    api.ask("DELETE", "/api/v1/namespaces/triptych/configmaps/triptych-admission")
    try:
        for _ in range(100):  # until the API server's cache follows
            status, answer = make(api, step_pod("evaluate", "any"), argo)
            if status != 201:
                break
        assert status == 422 and "no params found" in answer["message"], answer
    finally:
        api.apply(kept)
