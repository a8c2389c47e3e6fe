"""What a step's record says of the pod that it ran in, against a real API over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from lineage.records import read_records, recording
from lineage.whereabouts import PREFIX, whereabouts
from tests.cluster.kubernetes import Server
from tests.runs import run_context

POD = {"POD": "retraining-1", "POD_UID": "u-1", "NODE": "gpu-7", "NAMESPACE": "portraits", "SERVICE_ACCOUNT": "steps"}
RAN = "registry.example/triptych@sha256:" + "a" * 64


@pytest.fixture
def pod(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This process's pod: KFP's executor beside the step's container."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name, value in POD.items():
        monkeypatch.setenv(PREFIX + name, value)
    statuses = [{"name": "wait", "imageID": "argo@sha256:0"}, {"name": "main", "imageID": RAN}]
    made: dict[str, Any] = {"kind": "Pod", "metadata": {"name": "retraining-1"}, "status": {}}
    made["status"]["containerStatuses"] = [
        {"image": "any", "ready": True, "restartCount": 0, **status} for status in statuses
    ]
    server.cluster.pods["retraining-1"] = made
    return made


def test_a_record_names_the_pod_and_the_image_that_ran(pod: dict[str, Any], tmp_path: Any) -> None:
    context = run_context(tmp_path)
    with recording(context, "plan", {}):
        pass
    assert read_records(context.records, context.id)["plan"].where == {
        "pod": "retraining-1",
        "pod_uid": "u-1",
        "node": "gpu-7",
        "namespace": "portraits",
        "service_account": "steps",
        "image_digest": RAN,
    }


def test_an_api_that_refuses_is_named(pod: dict[str, Any], server: Server) -> None:
    server.cluster.trouble.append(("GET retraining-1", 403))
    said = whereabouts()["image_digest"]
    assert said.startswith("unknown: the API server answered 403")
    assert "needs get on pods in namespace portraits" in said


def test_an_api_that_is_away_is_named(pod: dict[str, Any], server: Server) -> None:
    server.stop()
    assert whereabouts()["image_digest"].startswith("unknown: the API server was not reached")


def test_an_image_that_is_not_known_yet_is_no_image(pod: dict[str, Any]) -> None:
    pod["status"]["containerStatuses"][1]["imageID"] = ""
    assert whereabouts()["image_digest"].startswith("unknown: the pod does not say yet")


def test_outside_of_a_cluster_nothing_is_said_or_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POD:
        monkeypatch.delenv(PREFIX + name, raising=False)
    assert whereabouts() == {} and server.cluster.asked == []
