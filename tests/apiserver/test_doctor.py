"""``triptych doctor`` on a real API server: everything that is missing in one pass, and nothing written."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.apiserver import HOW_CRDS, ApiServer, definitions, free_port
from tests.apiserver.objects import deployment, held, mend, put
from tests.runs import TRIPTYCH

LOOKER = "system:serviceaccount:default:looker"
MISSING = (
    """
there is no secret triptych-run-key|there is no secret triptych-gate-key|there is no secret triptych-promotion-key
there is no secret triptych-witness-key|there is no secret triptych-database|there is no secret triptych-s3
there is no secret triptych-serve-key|there is no configmap triptych-trust
image registry.example.org/triptych-data@sha256:0000|image registry.example.org/triptych-torch@sha256:0000
triptych-shared asks for storage class shared|triptych-mlflow names no storage class|the migration has not run
MLflow is not up|KFP is not installed|there is no workflow-controller-configmap|the cluster's DNS has no endpoints
none of 0 nodes takes pods|no node has the labels|LocalQueue portraits leads to ClusterQueue triptych
Kubeflow Trainer has CRDs and no Deployment|JobSet has CRDs and no Deployment|Kueue has CRDs and no Deployment
KServe has CRDs and no Deployment|the Prometheus operator has CRDs and no Deployment
""".strip()
    .replace("\n", "|")
    .split("|")
)


@pytest.fixture(scope="module")
def kubeconfig(api: ApiServer, warnings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of somebody who may read everything, ask for access reviews, and write nothing at all."""
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]}]
    reviews = {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "looker"}}
    subject = {"kind": "ServiceAccount", "name": "looker", "namespace": "default"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "looker"}
    api.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "looker", "namespace": "default"}},
        {**rbac, "kind": "ClusterRole", "rules": [*everything, reviews]},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]},
    )
    path = tmp_path_factory.mktemp("doctor") / "kubeconfig"
    api._write_kubeconfig(path, api.token_of("looker", "default"))
    return path


def doctor(kubeconfig: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TRIPTYCH, "doctor", "--context", "test", *options],
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def faults(said: str) -> list[str]:
    return [line.partition(". ")[2] for line in said.splitlines() if line[:3].strip().isdigit() and ". " in line[:6]]


def test_everything_that_is_missing_is_told_at_once(api: ApiServer, kubeconfig: Path) -> None:
    began = time.monotonic()
    done = doctor(kubeconfig)
    took = time.monotonic() - began
    told = faults(done.stdout)
    print(f"{len(told)} faults in {took:.1f} s, start of the program included")
    wanted = [one for one in MISSING if definitions() or ("CRDs" not in one and "LocalQueue" not in one)]
    assert done.returncode == 1, done.stderr
    assert took <= 10
    assert [one for one in wanted if not any(one in fault for fault in told)] == [], done.stdout
    assert len(told) >= 25 and len(set(told)) == len(told)
    remedies = [line for line in done.stdout.splitlines() if line.strip().startswith("->")]
    assert len(remedies) == len(told) and all(len(line.strip()) > 5 for line in remedies)
    # Whoever asked may write nothing: had it tried to, it would have been refused and said so.
    assert "you may not read" not in done.stdout and "could not be asked" not in done.stdout, done.stdout


def test_what_may_not_be_read_is_told(api: ApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    blind = tmp_path / "kubeconfig"
    api._write_kubeconfig(blind, api.token_of("triptych-serve"))
    done = doctor(blind)
    assert (
        done.returncode == 1 and "you may not read /api/v1/namespaces/triptych/secrets/triptych-run-key" in done.stdout
    )


def test_no_api_server_and_no_context_are_one_error_each(tmp_path: Path, kubeconfig: Path) -> None:
    away = tmp_path / "kubeconfig"
    text = kubeconfig.read_text().splitlines()
    away.write_text(
        "\n".join(f"    server: https://127.0.0.1:{free_port()}" if "server:" in line else line for line in text)
    )
    done = doctor(away)
    assert done.returncode == 2 and done.stderr.startswith("error: the API server does not answer"), done.stderr
    done = doctor(kubeconfig, "--context", "elsewhere")
    assert done.returncode == 2 and done.stderr.startswith("error: no cluster to ask"), done.stderr


def test_another_namespace_is_not_there(kubeconfig: Path) -> None:
    assert "there is no namespace nowhere" in doctor(kubeconfig, "--namespace", "nowhere").stdout


@pytest.fixture(scope="module")
def mended(api: ApiServer, kubeconfig: Path) -> ApiServer:
    """The cluster with all that objects alone can mend."""
    mend(api, f"http://127.0.0.1:{free_port()}", queues=bool(definitions()))
    return api


@pytest.mark.skipif(not definitions(), reason=HOW_CRDS)
def test_what_was_mended_is_told_no_more(mended: ApiServer, kubeconfig: Path) -> None:
    done = doctor(kubeconfig)
    left = faults(done.stdout)
    kinds = (
        *("image registry.example.org", "the migration", "MLflow is not up", "KFP's API does not answer"),
        *("bucket triptych-", "you may not read"),
    )
    assert [fault for fault in left if not fault.startswith(kinds)] == []
    assert any("could not be asked from here: EndpointConnectionError" in fault for fault in left), left
    assert "canary" not in done.stdout + done.stderr


def change(api: ApiServer, path: str, patch: dict[str, Any]) -> None:
    done = api.ask("PATCH", path, patch, kind="application/merge-patch+json")
    assert done[0] == 200, done


def kfp_is_old(api: ApiServer) -> None:
    put(api, deployment("ml-pipeline", "gcr.io/ml-pipeline/api-server:2.3.1", "kubeflow"))


def argo_does_not_retry(api: ApiServer) -> None:
    text = "spec: {templateDefaults: {retryStrategy: {retryPolicy: OnError}}}"
    put(api, held("ConfigMap", "workflow-controller-configmap", "kubeflow", workflowDefaults=text))


def a_key_is_half_there(api: ApiServer) -> None:
    change(api, "/api/v1/namespaces/triptych/secrets/triptych-run-key", {"data": {"run.pub": None}})


def the_namespace_is_open(api: ApiServer) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    change(api, "/api/v1/namespaces/triptych", {"metadata": {"labels": labels}})


def the_schedule_is_paused(api: ApiServer) -> None:
    change(api, "/apis/batch/v1/namespaces/triptych/cronjobs/triptych-retrain", {"spec": {"suspend": True}})


def nothing_was_reconciled(api: ApiServer) -> None:
    late = (datetime.now(UTC) - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = "/apis/batch/v1/namespaces/triptych/cronjobs/triptych-reconcile/status"
    change(api, path, {"status": {"lastSuccessfulTime": late, "lastScheduleTime": late}})


def an_image_cannot_be_pulled(api: ApiServer) -> None:
    from tests.apiserver.test_admission import step_pod

    pod = step_pod("evaluate", "registry.example/gone@sha256:1")
    pod["metadata"]["namespace"] = "triptych"
    waiting = {
        "name": "main",
        "image": "registry.example/gone@sha256:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
    }
    put(api, pod, {"containerStatuses": [{**waiting, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]})


def the_quota_is_used_up(api: ApiServer) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": "triptych"}}
    put(api, {**quota, "spec": {"hard": {"pods": "3"}}}, {"hard": {"pods": "3"}, "used": {"pods": "3"}})


def a_role_is_too_broad(api: ApiServer) -> None:
    meta = {"metadata": {"name": "broad", "namespace": "triptych"}, "apiVersion": "rbac.authorization.k8s.io/v1"}
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "broad"}
    subjects = [{"kind": "ServiceAccount", "name": "triptych-run", "namespace": "triptych"}]
    put(api, {**meta, "kind": "Role", "rules": rules})
    put(api, {**meta, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects})


def a_right_is_gone(api: ApiServer) -> None:
    api.ask("DELETE", "/apis/rbac.authorization.k8s.io/v1/namespaces/triptych/rolebindings/triptych-submitter")


def the_policy_is_gone(api: ApiServer) -> None:
    api.ask("DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/triptych-gate-key")


def an_account_is_gone(api: ApiServer) -> None:
    api.ask("DELETE", "/api/v1/namespaces/triptych/serviceaccounts/triptych-reconciler")


def the_gpus_are_gone(api: ApiServer) -> None:
    change(api, "/api/v1/nodes/gpu-1/status", {"status": {"allocatable": {"nvidia.com/gpu": "0"}}})


def the_configuration_is_wrong(api: ApiServer) -> None:
    path = "/api/v1/namespaces/triptych/configmaps/triptych-configuration"
    change(api, path, {"data": {"retrain.yaml": "cluster: {endpoint: nowhere}"}})


@pytest.mark.skipif(not definitions(), reason=HOW_CRDS)
def test_what_breaks_is_told(mended: ApiServer, kubeconfig: Path) -> None:
    """Broken one after the other, told all together: the last test here, since it leaves things broken."""
    broken = {
        kfp_is_old: "KFP is 2.3.1, and 2.15 is needed",
        argo_does_not_retry: "Argo's retryPolicy is OnError",
        a_key_is_half_there: "secret triptych-run-key has no run.pub",
        the_namespace_is_open: "triptych does not enforce Pod Security restricted",
        the_schedule_is_paused: "CronJob triptych-retrain is suspended",
        nothing_was_reconciled: "ledger and channel are stale",
        an_image_cannot_be_pulled: "registry.example/gone@sha256:1 cannot be pulled",
        the_quota_is_used_up: "the quota team is used up: pods",
        a_role_is_too_broad: "triptych-run may get secrets",
        a_right_is_gone: "triptych-submit may not create runs.pipelines.kubeflow.org",
        the_policy_is_gone: "there is no validatingadmissionpolicybindings triptych-gate-key",
        an_account_is_gone: "there is no service account triptych-reconciler",
        the_gpus_are_gone: "no node has 1 nvidia.com/gpu to give",
    }
    for break_it in broken:
        break_it(mended)
    time.sleep(1)  # for the API server's caches of rights
    said = doctor(kubeconfig).stdout
    assert [fault for fault in broken.values() if fault not in said] == [], said
    the_configuration_is_wrong(mended)
    assert "the configuration's section cluster is wrong" in doctor(kubeconfig).stdout
