"""``triptych doctor`` on an API server's answers: every fault of its table, one at a time, and how long it may take."""

from __future__ import annotations

import base64
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.doctor.cluster import EXPECTED, Cluster, examine
from pipelines.errors import RequestError
from tests.apiserver.conftest import rendered
from tests.apiserver.objects import held, mend, put
from tests.cluster.answers import Answers, AnswersServer
from tests.cluster.conftest import use
from tests.cluster.test_rendering import pytestmark as pytestmark

HERE = "/api/v1/namespaces/triptych"
BATCH, APPS = "/apis/batch/v1/namespaces/triptych", "/apis/apps/v1/namespaces"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ADMISSION, KUEUE = "/apis/admissionregistration.k8s.io/v1", "/apis/kueue.x-k8s.io/v1beta2"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/triptych/workflows"
KFP_HEALTH = "/api/v1/namespaces/kubeflow/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"
CHANNEL = f"{HERE}/services/triptych-mlflow:5000/proxy/api/2.0/triptych/channel/metadata/timestamp.json"
MODEL, RUN = "portraits", "5e1f0a52-0000-4000-8000-000000000001"


def hours(of: float) -> str:
    """A time so many hours from now."""
    return (datetime.now(UTC) + timedelta(hours=of)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """A cluster that lacks nothing: the production overlay, and all that others make."""
    sound = Answers()
    sound.apply(*rendered("production"))
    mend(sound, "http://store")
    for part in EXPECTED["parts"]:
        definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        sound.apply({**definition, "metadata": {"name": part["crd"]}})
    images = [{"name": name, "image": f"r.example/{name}@sha256:{'1' * 64}"} for name in ("data", "torch")]
    sound.ask("PATCH", f"{HERE}/podtemplates/triptych-images", {"template": {"spec": {"containers": images}}})
    done = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    sound.ask("PATCH", f"{BATCH}/jobs/triptych-migrate", done)
    sound.ask("PATCH", f"{APPS}/triptych/deployments/triptych-mlflow", {"status": {"availableReplicas": 1}})
    sound.objects[KFP_HEALTH] = {"multi_user": True}
    sound.objects[CHANNEL] = {"signed": {"expires": hours(20)}}
    return sound.objects


@pytest.fixture
def server(objects: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnswersServer]:
    """That cluster, to be broken."""
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", "TRIPTYCH_KFP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    running = AnswersServer(tmp_path)
    use(running.kubeconfig, monkeypatch)
    running.known.objects = copy.deepcopy(objects)
    store = base64.b64encode(running.url.encode()).decode()
    running.known.ask("PATCH", f"{HERE}/secrets/triptych-s3", {"data": {"AWS_ENDPOINT_URL_S3": store}})
    yield running
    running.stop()


def faults(server: AnswersServer, governed: str = "") -> list[str]:
    return [what for what, _ in examine(Cluster.of("test", "triptych", "kubeflow", governed))]


Breaking = Callable[[Answers], object]


def gone(path: str) -> Breaking:
    return lambda known: known.objects.pop(path)


def changed(path: str, **patch: Any) -> Breaking:
    return lambda known: known.ask("PATCH", path, patch)


def answered(path: str, status: int) -> Breaking:
    return lambda known: known.status.update({path: status})


def older(deployment: str, image: str) -> Breaking:
    return changed(
        f"{APPS}/kubeflow/deployments/{deployment}",
        spec={"template": {"spec": {"containers": [{"name": "main", "image": image}]}}},
    )


def waiting(known: Answers) -> None:
    """A pod whose image cannot be pulled."""
    status = {"image": "r.example/gone@sha256:1", "state": {"waiting": {"reason": "ErrImagePull"}}}
    known.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step"}})
    known.ask("PATCH", f"{HERE}/pods/step", {"status": {"containerStatuses": [status]}})


def full(known: Answers) -> None:
    """A quota that is used up."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": "triptych"}}
    put(known, quota, {"hard": {"pods": "3", "cpu": "9"}, "used": {"pods": "3", "cpu": "1"}})


def unnamed_class(known: Answers) -> None:
    known.ask("PATCH", "/apis/storage.k8s.io/v1/storageclasses/shared", {"metadata": {"annotations": None}})


def store_away(known: Answers) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "canary", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    put(known, held("Secret", "triptych-s3", **keys))


def labelled(name: str, value: str) -> Breaking:
    return changed(HERE, metadata={"labels": {name: value}})


RETRAIN = f"{BATCH}/cronjobs/triptych-retrain"
GPUS = {"status": {"allocatable": {"nvidia.com/gpu": "0"}}}
SMALL = [{"coveredResources": ["cpu"], "flavors": []}]
OLD_TOO = [{"name": "data", "image": "r.example/data:latest"}]
BAD_ZONE = {"timeZone": "Europe/Atlantis"}
BREAKS: list[tuple[str, Breaking, str]] = [
    ("namespace", gone(HERE), "there is no namespace triptych"),
    ("pod-security", labelled("pod-security.kubernetes.io/enforce", "baseline"), "does not enforce Pod Security"),
    ("governed", labelled("triptych.dev/governed", "false"), "has no label triptych.dev/governed"),
    ("policy", gone(f"{ADMISSION}/validatingadmissionpolicies/triptych-gate-key"), "any pod may mount the gate key"),
    ("network", gone("/apis/networking.k8s.io/v1/namespaces/triptych/networkpolicies/default-deny"), "by default"),
    (
        "argo-settings",
        gone("/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"),
        "there is no workflow-controller-configmap in kubeflow",
    ),
    ("content", gone(f"{HERE}/secrets/triptych-gate-key"), "there is no secret triptych-gate-key"),
    ("keys", changed(f"{HERE}/secrets/triptych-run-key", data={"run.pub": None}), "triptych-run-key has no run.pub"),
    ("kubernetes", lambda known: known.objects.update({"/version": {"gitVersion": "v1.35.4"}}), "v1.35.4, and 1.36"),
    ("clock", lambda known: setattr(known, "ahead", 95.0), "clock is +9"),
    ("clock", lambda known: setattr(known, "ahead", -95.0), "clock is -9"),
    ("part", gone(f"{CRD}/workflows.argoproj.io"), "KFP is not installed: no CRD workflows.argoproj.io"),
    ("part-unused", gone(f"{CRD}/trainjobs.trainer.kubeflow.org"), "Kubeflow Trainer is not installed"),
    ("controller", gone(f"{APPS}/kubeflow/deployments/kueue-controller-manager"), "Kueue has CRDs and no Deployment"),
    ("version", older("ml-pipeline", "kfp-api-server:2.14.9"), "KFP is 2.14.9, and 2.15 is needed"),
    ("version", older("kubeflow-trainer-controller-manager", "t:v2.0.1"), "Trainer is 2.0.1, and 2.1 is needed"),
    ("version", older("jobset-controller-manager", "j:v0.7.3"), "JobSet is 0.7.3, and 0.8 is needed"),
    ("version", older("kueue-controller-manager", "k:v0.13.2"), "Kueue is 0.13.2, and 0.14 is needed"),
    ("version", older("kserve-controller-manager", "s:v0.15.0"), "KServe is 0.15.0, and 0.16 is needed"),
    ("version", older("prometheus-operator", "p:v0.79.9"), "the Prometheus operator is 0.79.9, and 0.80 is needed"),
    (
        "controller-down",
        changed(f"{APPS}/kubeflow/deployments/jobset-controller-manager", status={"availableReplicas": 0}),
        "JobSet does not run",
    ),
    (
        "retries",
        changed(
            "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap",
            data={"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {retryPolicy: OnError}}}"},
        ),
        "Argo's retryPolicy is OnError",
    ),
    ("kfp", answered(KFP_HEALTH, 503), "KFP's API does not answer"),
    ("dns", gone("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/dns"), "DNS has no endpoints"),
    ("nodes", changed("/api/v1/nodes/gpu-1", spec={"unschedulable": True}), "none of 1 nodes takes pods"),
    ("bucket", answered("/triptych-witness", 404), "bucket triptych-witness answers 404"),
    ("bucket", answered("/triptych-models", 403), "bucket triptych-models answers 403"),
    ("buckets-away", store_away, "could not be asked from here: EndpointConnectionError"),
    (
        "image",
        changed(f"{HERE}/podtemplates/triptych-images", template={"spec": {"containers": OLD_TOO}}),
        "image r.example/data:latest is a placeholder or names no digest",
    ),
    ("pull", waiting, "image r.example/gone@sha256:1 cannot be pulled (step): ErrImagePull"),
    ("claim", gone(f"{HERE}/persistentvolumeclaims/triptych-mlflow"), "there is no volume claim triptych-mlflow"),
    (
        "class",
        changed(f"{HERE}/persistentvolumeclaims/triptych-shared", spec={"storageClassName": "fast"}),
        "triptych-shared asks for storage class fast",
    ),
    ("no-class", unnamed_class, "triptych-mlflow names no storage class"),
    ("lost", changed(f"{HERE}/persistentvolumeclaims/triptych-mlflow", status={"phase": "Lost"}), "lost its volume"),
    ("migration", changed(f"{BATCH}/jobs/triptych-migrate", status=None), "the migration has not run"),
    ("mlflow", changed(f"{APPS}/triptych/deployments/triptych-mlflow", status=None), "MLflow is not up"),
    ("channel", answered(CHANNEL, 503), "MLflow is unreachable, or has no channel"),
    ("channel-stale", changed(CHANNEL, signed={"expires": hours(-3)}), "the channel ran out 3."),
    ("schedule", gone(RETRAIN), "there is no CronJob triptych-retrain"),
    ("suspended", changed(RETRAIN, spec={"suspend": True}), "CronJob triptych-retrain is suspended"),
    ("zone", changed(RETRAIN, spec=BAD_ZONE), "CronJob triptych-retrain: time zone Europe/Atlantis is not known"),
    (
        "nothing-submitted",
        changed(RETRAIN, status={"lastSuccessfulTime": hours(-40)}),
        "nothing was submitted or found unchanged for 40 h",
    ),
    (
        "stale",
        changed(f"{BATCH}/cronjobs/triptych-reconcile", status={"lastSuccessfulTime": hours(-5)}),
        "ledger and channel are stale: nothing reconciled them for 5 h",
    ),
    (
        "configuration",
        changed(f"{HERE}/configmaps/triptych-configuration", data={"retrain.yaml": "cluster: {endpoint: nowhere}"}),
        "the configuration's section cluster is wrong",
    ),
    ("labels", changed("/api/v1/nodes/gpu-1", metadata={"labels": None}), "no node has the labels"),
    ("accelerators", changed("/api/v1/nodes/gpu-1", **GPUS), "no node has 1 nvidia.com/gpu to give"),
    (
        "runtime",
        gone("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/triptych-torch"),
        "there is no ClusterTrainingRuntime triptych-torch",
    ),
    ("queue", gone(f"{KUEUE}/namespaces/triptych/localqueues/portraits"), "there is no LocalQueue portraits"),
    ("cluster-queue", gone(f"{KUEUE}/clusterqueues/triptych"), "leads to ClusterQueue triptych, which is not there"),
    (
        "no-quota",
        changed(f"{KUEUE}/clusterqueues/triptych", spec={"resourceGroups": SMALL}),
        "ClusterQueue triptych has no quota of nvidia.com/gpu",
    ),
    ("quota", full, "the quota team is used up: pods"),
    ("account", gone(f"{HERE}/serviceaccounts/triptych-gate"), "there is no service account triptych-gate"),
    (
        "right",
        lambda known: known.may.remove(("triptych-submit", "create runs.pipelines.kubeflow.org")),
        "triptych-submit may not create runs.pipelines.kubeflow.org",
    ),
    ("broad", lambda known: known.may.add(("triptych-run", "get secrets")), "triptych-run may get secrets, and so"),
]
TOGETHER = {
    "unasked-right": "what triptych-run may do cannot be asked",
    "unread": "you may not read /apis/authorization.k8s.io/v1/subjectaccessreviews",
    "unasked": "could not be asked: TimeoutError: no time is left",
    "lease": f"run {RUN}, which is no more, has {MODEL} until",
    "token": "your token for KFP ran out 2.0 h ago",
}
"""Faults that tests of their own below show."""


def test_every_fault_of_the_table_is_shown_by_a_test() -> None:
    assert {key for key, *_ in BREAKS} | TOGETHER.keys() == EXPECTED["faults"].keys()


def test_a_cluster_that_lacks_nothing_has_no_fault(server: AnswersServer) -> None:
    done = CliRunner().invoke(app, ["doctor", "--context", "test"])
    assert done.exit_code == 0 and done.output == "nothing is missing\n", done.output
    posts = {line for line in server.known.asked if not line.startswith(("GET", "HEAD"))}
    assert posts == {"POST /apis/authorization.k8s.io/v1/subjectaccessreviews"}, "nothing else is ever written"


@pytest.mark.parametrize(("key", "break_it", "told"), BREAKS, ids=[f"{key}: {told}"[:40] for key, _, told in BREAKS])
def test_a_fault_is_told_and_no_other(server: AnswersServer, key: str, break_it: Breaking, told: str) -> None:
    break_it(server.known)
    found = examine(Cluster.of("test", "triptych", "kubeflow"))
    assert [told in fault for fault, _ in found] == [True], found
    assert found[0][1].startswith(EXPECTED["faults"][key][1].partition("{")[0])


def test_what_may_not_be_asked_is_told(server: AnswersServer) -> None:
    server.known.status["/apis/authorization.k8s.io/v1/subjectaccessreviews"] = 403
    found = faults(server)
    for key in ("unasked-right", "unread"):
        assert any(TOGETHER[key] in fault for fault in found), found


def test_a_slow_api_server_keeps_nobody_longer_than_ten_seconds(server: AnswersServer) -> None:
    server.known.late = 1.5
    before, began = set(threading.enumerate()), time.monotonic()
    found = faults(server)
    took = time.monotonic() - began
    left = [thread for thread in threading.enumerate() if thread not in before and "Executor" in thread.name]
    print(f"{took:.1f} s, {len(found)} faults")
    assert took <= 10 and left == []
    assert any(TOGETHER["unasked"] in fault for fault in found), found


def test_an_api_server_that_never_answers_is_one_error_in_time(server: AnswersServer) -> None:
    server.known.late = 30
    began = time.monotonic()
    with pytest.raises(RequestError, match="the API server does not answer"):
        faults(server)
    assert time.monotonic() - began <= 10


@pytest.fixture
def governed(tmp_path: Path) -> Iterator[AnswersServer]:
    """The governed server's ``GET /state``, with a lease."""
    (tmp_path / "governed").mkdir()
    running = AnswersServer(tmp_path / "governed")
    held_until = datetime.now(UTC) + timedelta(hours=3)
    lease = {"model": MODEL, "run": RUN, "expires": held_until.isoformat(timespec="milliseconds")}
    running.known.objects["/api/2.0/triptych/state"] = {"leases": {MODEL: lease}}
    yield running
    running.stop()


@pytest.mark.parametrize(("phase", "dead"), [(None, True), ("Failed", True), ("Running", False)])
def test_a_lease_whose_run_is_no_more_is_told(
    server: AnswersServer, governed: AnswersServer, phase: str | None, dead: bool
) -> None:
    if phase:
        meta = {"name": "retraining-x", "namespace": "triptych", "labels": {"pipeline/runid": RUN}}
        server.known.objects[f"{WORKFLOWS}/retraining-x"] = {"metadata": meta, "status": {"phase": phase}}
    found = faults(server, governed.url)
    assert [TOGETHER["lease"] in fault for fault in found] == [True] * dead, found


def test_a_governed_server_that_is_away_is_told_in_time(server: AnswersServer, governed: AnswersServer) -> None:
    governed.known.late = 30
    began = time.monotonic()
    (said,) = faults(server, governed.url)
    assert said.startswith("leases could not be asked: LedgerError") and time.monotonic() - began <= 10


def test_a_lease_that_ran_out_keeps_nobody(server: AnswersServer, governed: AnswersServer) -> None:
    state = governed.known.objects["/api/2.0/triptych/state"]
    state["leases"][MODEL]["expires"] = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="milliseconds")
    assert faults(server, governed.url) == []


def token(hours_left: float) -> str:
    """A token as the API server makes them, as far as anybody may read it."""
    claims = json.dumps({"aud": ["pipelines.kubeflow.org"], "exp": int(time.time() + hours_left * 3600)})
    parts = ('{"alg":"RS256"}', claims, "not a signature")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def test_the_callers_token_that_ran_out_is_told(
    server: AnswersServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_KFP_TOKEN", token(-2))
    assert [TOGETHER["token"] in fault for fault in faults(server)] == [True]
    for good in (token(1), "opaque"):
        monkeypatch.setenv("TRIPTYCH_KFP_TOKEN", good)
        assert faults(server) == []
    (tmp_path / "token").write_text(token(-2))
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert [TOGETHER["token"] in fault for fault in faults(server)] == [True]


@pytest.mark.parametrize("context", ["test", ""])
def test_without_a_kubeconfig_there_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str) -> None:
    use(tmp_path / "nothing", monkeypatch)
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "nothing"))
    done = CliRunner().invoke(app, ["doctor", *(("--context", context) if context else ())])
    assert done.exit_code == 2 and "error: no cluster to ask" in done.output, done.output
