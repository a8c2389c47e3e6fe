"""A cluster's API, and one job that really trained on two nodes: what it left is what the other jobs leave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainjob import job_name, train_on_cluster
from tests.cluster.kubernetes import Cluster, Server
from tests.training.conftest import World
from tests.training.conftest import world as world
from tests.training.forked import free_port
from training.launch.launch import TrainingRecord
from training.launch.transfer import Place
from training.launch.watching import MlflowRun

RUN = "retraining-20260101-000000-abcd"
NAME = job_name(RUN)


@dataclass
class Step:
    """The fine-tune step of a run, against one API server."""

    world: World
    cluster: Cluster
    root: Path
    changes: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    mlflow: MlflowRun | None = None

    @property
    def trainjob(self) -> TrainJobSettings:
        fields = {
            "storage": str(self.root / "shared"),
            "image": "registry.example/triptych@sha256:1",
            "nodes": 2,
            "poll_seconds": 0.05,
            "patience_seconds": 20,
        }
        return TrainJobSettings.model_validate(fields | self.changes)

    @property
    def place(self) -> Path:
        return self.root / "shared" / NAME

    @property
    def candidate(self) -> Path:
        return self.root / "candidate"

    def run(self) -> TrainingRecord:
        settings, curves = self.world.settings(**self.training), self.root / "curves.jsonl"
        features, candidate = self.world.features, self.candidate
        return train_on_cluster(self.trainjob, RUN, settings, features, candidate, curves, self.mlflow)


def use(kubeconfig: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the client find ``kubeconfig``; it reads KUBECONFIG once, when it is imported."""
    patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(tmp_path)
    use(running.kubeconfig, monkeypatch)
    yield running
    running.stop()


@pytest.fixture
def step(world: World, server: Server, tmp_path: Path) -> Step:
    return Step(world, server.cluster, tmp_path)


def train_for_real(cluster: Cluster, name: str) -> None:
    """Run the job's command once for each node, as its controller would; their output is the pods' logs."""
    trainer = cluster.jobs[name]["spec"]["trainer"]
    nodes, port, processes = trainer["numNodes"], str(free_port()), []
    for rank in range(nodes):
        pod = cluster.start(name, index=rank)
        told = {
            "PET_NNODES": str(nodes),
            "PET_NPROC_PER_NODE": "auto",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        process = subprocess.Popen(
            [sys.executable, *trainer["command"][1:]],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        thread = threading.Thread(
            target=lambda out=process.stdout, pod=pod: [cluster.write(pod, line.rstrip("\n")) for line in out]
        )
        thread.start()
        processes.append((process, thread))
    for _, thread in processes:
        thread.join()
    good = all(process.wait() == 0 for process, _ in processes)
    cluster.end(name, "Complete" if good else "Failed")


@dataclass(frozen=True)
class RealJob:
    """A job that trained."""

    place: Path
    candidate: Path
    record: TrainingRecord
    body: dict[str, Any]
    asked: list[str]


@pytest.fixture(scope="session")
def real(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealJob]:
    """Submitted by the step, trained by two processes on two nodes under DeepSpeed, collected by the step."""
    root = tmp_path_factory.mktemp("cluster")
    running = Server(root)
    with pytest.MonkeyPatch.context() as patch:
        use(running.kubeconfig, patch)
        cluster = running.cluster
        cluster.on_create = lambda name: threading.Thread(target=train_for_real, args=(cluster, name)).start()
        step = Step(world, cluster, root, {"labels": {"kueue.x-k8s.io/queue-name": "portraits"}})
        record = step.run()
        yield RealJob(step.place, step.candidate, record, cluster.jobs[NAME], cluster.asked)
    running.stop()


def leave_results(real: RealJob, place: Path) -> None:
    """What the nodes of a job that trained leave."""
    (Place(str(place)) / "candidate").upload(real.place / "candidate")
    for name in ("curves.jsonl", "training.json"):
        (place / name).write_bytes((real.place / name).read_bytes())
