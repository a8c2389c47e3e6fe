"""The compiled pipeline: the same whenever it is compiled, small, and each step with what the table gives it."""

from __future__ import annotations

import json

import pytest
import yaml

from lineage.whereabouts import FIELDS
from tests.cluster.golden import GOLDEN, compiled, shape

STEPS = {
    *("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune", "evaluate", "gate", "register"),
    *("promote", "nothing-new", "close-run"),
}
MOST = 400_000
"""Bytes of a Workflow object; etcd takes 1.5 MB, and Argo keeps the state of all nodes in it too."""


@pytest.fixture(scope="module")
def content() -> bytes:
    return compiled()


def test_compiling_is_stable(content: bytes) -> None:
    assert compiled(seed="12345") == content


def test_its_shape_is_the_golden_one(content: bytes) -> None:
    golden = list(yaml.safe_load_all(GOLDEN.read_text()))
    assert shape(content) == golden, "if it is meant to change: python -m tests.cluster.golden, and look at the diff"


def test_only_the_gate_step_mounts_the_gate_key(content: bytes) -> None:
    _, platform = yaml.safe_load_all(content)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == STEPS
    text = {name: json.dumps(told) for name, told in executors.items()}
    assert [name for name, told in text.items() if "triptych-gate-key" in told] == ["exec-gate"]
    assert [name for name, told in text.items() if "triptych-run-key" not in told] == []


def test_each_step_gets_what_the_table_says(content: bytes) -> None:
    pipeline, platform = yaml.safe_load_all(content)
    told = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-evaluate"]
    container = pipeline["deploymentSpec"]["executors"]["exec-evaluate"]["container"]
    assert container["image"] == "registry.example/torch@sha256:2"
    assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    asked = {name: told for name, told in container["resources"].items() if name.startswith("resource")}
    assert asked == {
        "resourceCpuRequest": "8",
        "resourceCpuLimit": "16",
        "resourceMemoryRequest": "64Gi",
        "resourceMemoryLimit": "64Gi",
    }
    assert told["nodeSelector"]["labels"] == {"nvidia.com/gpu.present": "true"}
    assert told["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    labels = told["podMetadata"]["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": "portraits", "triptych.dev/step": "evaluate"}
    assert told["emptyDirMounts"][0] == {
        "mountPath": "/dev/shm",
        "medium": "Memory",
        "sizeLimit": "8Gi",
        "volumeName": "shm",
    }
    assert told["securityContext"]["runAsNonRoot"] is True
    assert len(told["fieldPathAsEnv"]) == len(FIELDS)
    secrets = {one["secretName"] for one in told["secretAsVolume"]} | {one["secretName"] for one in told["secretAsEnv"]}
    assert secrets == {"triptych-run-key", "triptych-s3"}


def test_a_workflow_stays_small_with_64_shards() -> None:
    """KFP's compiler keeps the IR in the Workflow as JSON inside of JSON, each component once, whatever the shards; a
    template a task comes on top. So the IR, escaped twice, bounds what of it is ours. (KFP's own compiler is in Go and
    does not run here.)"""
    pipeline, platform = yaml.safe_load_all(compiled("--sample-shards", "64"))
    nested = json.dumps(json.dumps(pipeline)) + json.dumps(json.dumps(platform))
    templates = 4_000 * len(pipeline["deploymentSpec"]["executors"])
    assert len(nested) + templates < MOST
