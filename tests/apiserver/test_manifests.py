"""The manifests, on a real API server: accepted, restricted, and with no more rights than are used."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.apiserver.apiserver import ApiServer, definitions
from tests.apiserver.conftest import rendered

ROOT = Path(__file__).resolve().parents[2]
GRANTS = {
    ("triptych-executor", "argoproj.io/workflowtaskresults", "create"): "Argo's executor reports a step's result",
    ("triptych-executor", "argoproj.io/workflowtaskresults", "patch"): "Argo's executor reports a step's result",
    ("triptych-executor", "/pods", "get"): "lineage/whereabouts.py: read_namespaced_pod",
    ("triptych-executor", "/configmaps", "get"): "KFP's launcher reads kfp-launcher",
    ("triptych-executor", "/secrets", "get"): "KFP's launcher reads the object store's credentials",
    ("triptych-registry-writer", "mlflow.kubeflow.org/experiments", "get"): 'infra/governed/tokens.py: "get"',
    (
        "triptych-registry-writer",
        "mlflow.kubeflow.org/experiments",
        "update",
    ): 'infra/governed/tokens.py: "experiments"',
    ("triptych-registry-mover", "mlflow.kubeflow.org/registeredmodels", "update"): (
        'infra/governed/identity.py: "registeredmodels"'
    ),
    ("triptych-trainer", "trainer.kubeflow.org/trainjobs", "get"): "components/fine_tune/trainer_api.py: get",
    (
        "triptych-trainer",
        "trainer.kubeflow.org/trainjobs",
        "create",
    ): "components/fine_tune/trainer_api.py: self._backend.train(",
    (
        "triptych-trainer",
        "trainer.kubeflow.org/trainjobs",
        "delete",
    ): "components/fine_tune/trainer_api.py: delete_namespaced_custom_object",
    ("triptych-trainer", "trainer.kubeflow.org/trainingruntimes", "get"): "Kubeflow's SDK looks a runtime up by name",
    ("triptych-trainer", "/pods", "list"): "components/fine_tune/trainer_api.py: list_namespaced_pod",
    ("triptych-trainer", "/pods/log", "get"): "components/fine_tune/trainer_api.py: read_namespaced_pod_log",
    ("triptych-runtimes", "trainer.kubeflow.org/clustertrainingruntimes", "get"): "Kubeflow's SDK looks a runtime up",
    ("triptych-submitter", "pipelines.kubeflow.org/experiments", "list"): "pipelines/submission.py: create_experiment",
    (
        "triptych-submitter",
        "pipelines.kubeflow.org/experiments",
        "create",
    ): "pipelines/submission.py: create_experiment",
    ("triptych-submitter", "pipelines.kubeflow.org/runs", "create"): "pipelines/submission.py: run_pipeline",
    ("triptych-submitter", "pipelines.kubeflow.org/runs", "get"): "pipelines/submission.py: get_run",
}
"""(role, group/resource, verb) -> what uses it: a file of ours and what stands in it, or who else."""
ACCOUNTS = ("run", "gate", "promotion", "reconciler", "submit", "serve")


def test_every_manifest_is_accepted_without_a_warning(api: ApiServer, warnings: list[str]) -> None:
    assert warnings == []
    kinds = {one["kind"] for one in rendered("production")}
    if definitions():
        assert {"ClusterTrainingRuntime", "LocalQueue", "InferenceService", "ServiceMonitor", "PrometheusRule"} <= kinds


def test_the_overlay_of_one_machine_is_accepted(api: ApiServer) -> None:
    space, *others = rendered("kind")
    api.apply(space)
    assert [told for one in others for told in api.apply(one, query="&dryRun=All") if "restricted" not in told] == []


def pod_templates(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """(what it belongs to, template) of every pod that the manifests make, those of custom resources included."""
    found = []
    for one in rendered(overlay):
        name, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            claims = [one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", [])]
            spec["template"]["spec"]["volumes"] += [{"name": claim, "emptyDir": {}} for claim in claims]
            found.append((name, spec["template"]))
        elif one["kind"] == "CronJob":
            found.append((name, spec["jobTemplate"]["spec"]["template"]))
        elif one["kind"] == "PodTemplate":
            found.append((name, one["template"]))
        elif one["kind"] == "ClusterTrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                found.append((name, job["template"]["spec"]["template"]))
        elif one["kind"] == "ServingRuntime":
            predictor = next(o for o in rendered(overlay) if o["kind"] == "InferenceService")["spec"]["predictor"]
            pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
            pod |= {key: predictor[key] for key in ("securityContext", "serviceAccountName")}
            found.append((name, {"metadata": {}, "spec": pod}))
    return found


@pytest.mark.parametrize("overlay", ["production", "kind"])
def test_pod_security_restricted_has_nothing_against_any_pod(api: ApiServer, warnings: list[str], overlay: str) -> None:
    templates = pod_templates(overlay)
    assert len(templates) >= 6
    for name, template in templates:
        spec = {k: v for k, v in template["spec"].items() if k != "serviceAccountName"} | {
            "serviceAccountName": "triptych-serve",
            "restartPolicy": "Never",
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": "triptych"}, "spec": spec}
        status, answer = api.ask("POST", "/api/v1/namespaces/triptych/pods?dryRun=All", pod)
        assert status == 201, f"{name}: {answer}"


def test_a_pod_that_is_not_restricted_is_refused(api: ApiServer, warnings: list[str]) -> None:
    spec = {"serviceAccountName": "triptych-serve", "containers": [{"name": "main", "image": "any"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
    status, answer = api.ask("POST", "/api/v1/namespaces/triptych/pods?dryRun=All", pod)
    assert status == 403 and "violates PodSecurity" in answer["message"]


def grants() -> set[tuple[str, str, str]]:
    roles = [one for one in rendered("production") if one["kind"] in ("Role", "ClusterRole")]
    return {
        (role["metadata"]["name"], f"{group}/{resource}", verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_every_grant_is_used_and_none_is_broad() -> None:
    assert grants() == set(GRANTS)
    assert not [grant for grant in GRANTS if "*" in "".join(grant)]
    for user in GRANTS.values():
        if match := re.fullmatch(r"((?:lineage|infra|pipelines|components)/\S+\.py): (.+)", user):
            path = ROOT / match[1]
            assert path.is_file() and match[2] in path.read_text(), user


ALLOWED = [
    ("run", "create", "workflowtaskresults.argoproj.io", ""),
    ("run", "patch", "workflowtaskresults.argoproj.io", ""),
    ("run", "get", "pods", ""),
    ("run", "list", "pods", ""),
    ("run", "get", "pods/log", ""),
    ("run", "get", "configmaps", "kfp-launcher"),
    ("run", "get", "secrets", "mlpipeline-minio-artifact"),
    ("run", "get", "trainjobs.trainer.kubeflow.org", ""),
    ("run", "create", "trainjobs.trainer.kubeflow.org", ""),
    ("run", "delete", "trainjobs.trainer.kubeflow.org", ""),
    ("run", "get", "trainingruntimes.trainer.kubeflow.org", ""),
    ("run", "get", "clustertrainingruntimes.trainer.kubeflow.org", ""),
    ("run", "get", "experiments.mlflow.kubeflow.org", ""),
    ("run", "update", "experiments.mlflow.kubeflow.org", ""),
    ("run", "update", "registeredmodels.mlflow.kubeflow.org", "portraits"),
    ("gate", "create", "workflowtaskresults.argoproj.io", ""),
    ("gate", "get", "pods", ""),
    ("gate", "update", "experiments.mlflow.kubeflow.org", ""),
    ("reconciler", "update", "registeredmodels.mlflow.kubeflow.org", "portraits"),
    ("reconciler", "get", "experiments.mlflow.kubeflow.org", ""),
    ("submit", "list", "experiments.pipelines.kubeflow.org", ""),
    ("submit", "create", "experiments.pipelines.kubeflow.org", ""),
    ("submit", "create", "runs.pipelines.kubeflow.org", ""),
    ("submit", "get", "runs.pipelines.kubeflow.org", ""),
    ("submit", "update", "experiments.mlflow.kubeflow.org", ""),
    ("promotion", "create", "tokenreviews.authentication.k8s.io", ""),
    ("promotion", "create", "subjectaccessreviews.authorization.k8s.io", ""),
]
DENIED = [
    *[(account, "get", "secrets", "triptych-gate-key") for account in ACCOUNTS],
    *[(account, "get", "secrets", "triptych-promotion-key") for account in ACCOUNTS],
    *[(account, "list", "secrets", "") for account in ACCOUNTS],
    *[(account, "create", "pods", "") for account in ACCOUNTS],
    *[(account, "create", "pods/exec", "") for account in ACCOUNTS],
    *[(account, "update", "configmaps", "triptych-configuration") for account in ACCOUNTS],
    *[(account, "create", "rolebindings.rbac.authorization.k8s.io", "") for account in ACCOUNTS],
    *[(account, "create", "serviceaccounts/token", "triptych-promotion") for account in ACCOUNTS],
    *[(account, "create", "workflows.argoproj.io", "") for account in ACCOUNTS],
    *[
        (account, "update", "registeredmodels.mlflow.kubeflow.org", "portraits")
        for account in ("gate", "submit", "serve")
    ],
    *[
        (account, "create", "trainjobs.trainer.kubeflow.org", "")
        for account in ("gate", "submit", "serve", "promotion")
    ],
    *[(account, "create", "runs.pipelines.kubeflow.org", "") for account in ("run", "gate", "serve", "promotion")],
    *[(account, "create", "tokenreviews.authentication.k8s.io", "") for account in ("run", "gate", "submit", "serve")],
    ("serve", "get", "experiments.mlflow.kubeflow.org", ""),
    ("gate", "get", "pods/log", ""),
    ("run", "delete", "pods", ""),
    ("run", "get", "configmaps", "triptych-trust"),
    ("submit", "delete", "runs.pipelines.kubeflow.org", ""),
]


@pytest.mark.parametrize(("account", "verb", "resource", "name"), ALLOWED)
def test_what_a_role_needs_it_may(
    api: ApiServer, warnings: list[str], account: str, verb: str, resource: str, name: str
) -> None:
    assert api.may(f"triptych-{account}", verb, resource, name=name)


def test_what_no_role_needs_none_may(api: ApiServer, warnings: list[str]) -> None:
    assert len(DENIED) >= 30
    assert [one for one in DENIED if api.may(f"triptych-{one[0]}", one[1], one[2], name=one[3])] == []


def test_no_role_may_anything_in_another_namespace(api: ApiServer, warnings: list[str]) -> None:
    reached = [one for one in ALLOWED if api.may(f"triptych-{one[0]}", one[1], one[2], "kubeflow", one[3])]
    assert {one[2] for one in reached} == {
        "clustertrainingruntimes.trainer.kubeflow.org",
        "tokenreviews.authentication.k8s.io",
        "subjectaccessreviews.authorization.k8s.io",
    }


@pytest.mark.parametrize(("zone", "accepted"), [("Europe/Berlin", True), ("Middle/Earth", False), ("TZ=UTC", False)])
def test_time_zones_of_the_schedule(api: ApiServer, warnings: list[str], zone: str, accepted: bool) -> None:
    job = next(one for one in rendered("production") if one["metadata"]["name"] == "triptych-retrain")
    job["spec"]["timeZone"] = zone
    status, answer = api.ask("PUT", f"{api.path_of(job)}?dryRun=All", job)
    assert (status == 200) is accepted, answer


@pytest.mark.parametrize(("cron", "accepted"), [("0 3 * * 1-5", True), ("0 0 3 * * *", False), ("@never", False)])
def test_bad_times_are_refused_when_they_are_applied(
    api: ApiServer, warnings: list[str], cron: str, accepted: bool
) -> None:
    job = next(one for one in rendered("production") if one["metadata"]["name"] == "triptych-retrain")
    job["spec"]["schedule"] = cron
    assert (api.ask("PUT", f"{api.path_of(job)}?dryRun=All", job)[0] == 200) is accepted


def test_the_schedule_is_paused_by_a_patch(api: ApiServer, warnings: list[str]) -> None:
    path = "/apis/batch/v1/namespaces/triptych/cronjobs/triptych-retrain?dryRun=All"
    status, answer = api.ask("PATCH", path, {"spec": {"suspend": True}}, kind="application/merge-patch+json")
    assert status == 200 and answer["spec"]["suspend"] is True and answer["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_canary_is_what_kserve_takes_in_standard_mode(api: ApiServer, warnings: list[str], tmp_path: Path) -> None:
    kubernetes = os.path.relpath(ROOT / "infra/kubernetes", tmp_path.resolve())
    content = {
        "resources": [f"{kubernetes}/overlays/production"],
        "components": [f"{kubernetes}/components/kserve-canary"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    service = next(one for one in rendered(str(tmp_path)) if one["kind"] == "InferenceService")
    (canary,) = service["spec"]["canary"]
    assert canary["predictor"]["name"] == "pinned" and "canaryTrafficPercent" not in yaml.safe_dump(service)
    assert service["spec"]["predictor"]["model"]["runtime"] == "triptych", (
        "KServe wants a model in the stable predictor"
    )
    assert api.apply(service, query="&dryRun=All") == []
