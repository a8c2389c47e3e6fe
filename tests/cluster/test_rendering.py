"""The manifests, as kubectl renders them: what can be checked without an API server."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster import IMAGES, ClusterSettings
from pipelines.configuration import TrainJobSettings
from tests.apiserver.apiserver import CRDS, NEVER_SKIP, definitions
from tests.apiserver.conftest import rendered
from tests.cluster.kfp import OPENAPI, Pipelines

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "infra/kubernetes/components/monitoring"
OPERATE = ROOT / "docs/operate.md"
OVERLAYS = ("kind", "production")
ELSEWHERE = {
    "kube_cronjob_status_last_successful_time",
    "kube_cronjob_spec_suspend",
    "kube_job_status_failed",
    "kube_pod_owner",
    "kube_pod_status_phase",
    "kube_deployment_status_replicas_available",
}
"""Metrics of kube-state-metrics."""

KUBECTL = "kubectl is not installed; it renders manifests"
pytestmark = pytest.mark.skipif(not shutil.which("kubectl") and NEVER_SKIP not in os.environ, reason=KUBECTL)


def test_nothing_is_left_out_where_nothing_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CRDS, OPENAPI, NEVER_SKIP):
        monkeypatch.delenv(name, raising=False)
    assert definitions() == [] and Pipelines().document is None
    monkeypatch.setenv(NEVER_SKIP, "1")
    with pytest.raises(AssertionError, match=f"{CRDS} names no folder"):
        definitions()
    with pytest.raises(AssertionError, match=f"{OPENAPI} names no document"):
        Pipelines()


def containers(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(object, container) of every container in the manifests."""

    def found(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in ("containers", "initContainers"):
                    yield from inner
                yield from found(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from found(inner)

    for one in rendered(overlay):
        for container in found(one):
            yield f"{one['kind']}/{one['metadata']['name']}", container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_images_are_named_by_digest_everywhere(overlay: str) -> None:
    named = {container["image"] for _, container in containers(overlay) if "triptych" in container["image"]}
    assert len(named) == 2 and all("@sha256:" in image for image in named)
    text = yaml.safe_dump_all(rendered(overlay))
    assert not re.search(r"(image|value): triptych-(data|torch)$", text, re.MULTILINE)
    retrain = next(c for name, c in containers(overlay) if name == "CronJob/triptych-retrain")
    told = {one["name"]: one.get("value") for one in retrain["env"]}
    assert {told[variable] for variable in IMAGES.values()} == named
    admission = next(one for one in rendered(overlay) if one["metadata"]["name"] == "triptych-admission")
    assert admission["data"]["image"] == told[IMAGES["data"]] == retrain["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_holds_a_secret(overlay: str) -> None:
    assert [one for one in rendered(overlay) if one["kind"] == "Secret"] == []
    for name, container in containers(overlay):
        for variable in container.get("env", []):
            if re.search("SECRET|PASSWORD|_URI$|LEDGER$", variable["name"]):
                assert "valueFrom" in variable, (name, variable["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_server_and_the_gate_step_get_at_decisive_keys(overlay: str) -> None:
    holders = {
        key: {one["metadata"]["name"] for one in rendered(overlay) if f"secretName: {key}" in yaml.safe_dump(one)}
        for key in ("triptych-gate-key", "triptych-promotion-key", "triptych-witness-key", "triptych-run-key")
    }
    assert holders == {
        "triptych-gate-key": set(),
        "triptych-promotion-key": {"triptych-mlflow"},
        "triptych-witness-key": {"triptych-mlflow"},
        "triptych-run-key": {"triptych-retrain"},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_of_an_overlay_is_one(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in IMAGES.values():
        monkeypatch.setenv(variable, "registry.example/image@sha256:0")
    monkeypatch.setenv("TRIPTYCH_ROOT", "0" * 64)
    content = yaml.safe_load((ROOT / f"infra/kubernetes/overlays/{overlay}/retrain.yaml").read_text())
    table = ClusterSettings.model_validate(content["cluster"])
    namespace = next(one for one in rendered(overlay) if one["kind"] == "Namespace")["metadata"]["name"]
    assert table.namespace == namespace
    accounts = {one["metadata"]["name"] for one in rendered(overlay) if one["kind"] == "ServiceAccount"}
    assert table.service_account in accounts
    if job := content.get("trainjob"):
        told, objects = TrainJobSettings.model_validate(job), rendered(overlay)
        assert told.runtime in {o["metadata"]["name"] for o in objects if o["kind"] == "ClusterTrainingRuntime"}
        queues = {o["metadata"]["name"] for o in objects if o["kind"] == "LocalQueue"}
        assert told.labels["kueue.x-k8s.io/queue-name"] in queues
        assert table.needs("evaluate").labels["kueue.x-k8s.io/queue-name"] in queues


def test_every_network_policy_denies_what_it_does_not_name() -> None:
    policies = {
        one["metadata"]["name"]: one["spec"] for one in rendered("production") if one["kind"] == "NetworkPolicy"
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for direction, other in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                assert rule.get("ports") or rule.get(other), f"{name} lets everything {direction}"
                assert other in rule or name == "outside", name


def queries() -> list[str]:
    """Every PromQL expression in alerts and dashboard."""
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    board = json.loads((MONITORING / "dashboard.json").read_text())
    alerts = [rule["expr"] for group in rules for rule in group["rules"]]
    return alerts + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def metrics_of_the_server() -> set[str]:
    """The names that ``/metrics`` of the server shows, read from the code that makes them."""
    found: set[str] = set()
    for path in (ROOT / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            kind = getattr(called, "attr", getattr(called, "id", ""))
            if (
                kind not in ("Counter", "Gauge", "Histogram", "watch")
                or not isinstance(node, ast.Call)
                or not node.args
            ):
                continue
            if isinstance(node.args[0], ast.Constant):
                name = f"triptych_serving_{node.args[0].value}"
                ends = {"Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"]}.get(kind, [""])
                found |= {name + end for end in ends}
    return found


def test_dashboard_and_alerts_name_metrics_that_exist() -> None:
    named = {name for query in queries() for name in re.findall(r"\b(?:triptych|kube|mlflow)_[a-z_]+\b(?!=)", query)}
    ours = {name for name in named if name.startswith("triptych_")}
    assert named - ours <= ELSEWHERE
    shown = metrics_of_the_server()
    if not shown:
        pytest.skip("there is no server with metrics in this tree")
    assert ours <= shown and len(ours) >= 8, ours - shown


def test_every_alert_leads_to_a_runbook_that_is_there() -> None:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"][0]["rules"]
    titles = re.findall(r"^#+ (.+)$", OPERATE.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert len(rules) >= 8
    assert [
        rule["alert"] for rule in rules if rule["annotations"]["runbook_url"].partition("#")[2] not in anchors
    ] == []


def test_the_key_of_the_gate_goes_to_no_step_that_asks_for_it() -> None:
    table = {"endpoint": "http://kfp", "tracking_uri": "http://m", "root": "r", "records": "/r"}
    images = {"data": "d", "torch": "t"}
    for row in ({"secrets": {"triptych-gate-key": "/k"}}, {"secret_environment": {"K": "triptych-gate-key/gate.pem"}}):
        for step in ("evaluate", "default", "gate"):
            with pytest.raises(ValueError, match="the gate step gets it by itself"):
                ClusterSettings.model_validate({**table, "images": images, "steps": {step: row}})
