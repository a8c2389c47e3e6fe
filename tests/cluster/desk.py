"""A configuration for a cluster, and the ledger that the cluster's runs would write, with nothing running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from components.plan.plan import make_plan
from components.snapshot_data.snapshot import take_snapshot
from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.entries import Body, Closed, Judged, Registered
from lineage.policy import policy_digest
from pipelines.cli import app
from pipelines.configuration import Configuration, policy_of, read_configuration
from pipelines.submission import Kfp
from tests.cluster.kfp import KfpServer
from tests.runs import AVATARS, some_portraits

MODEL = "portrait-avatars"


@dataclass
class Desk:
    """A configuration for a cluster whose KFP is `kfp`, and the ledger that its runs write."""

    folder: Path
    kfp: KfpServer
    portraits: Path
    registry: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    """What of these sections differs; a key that is None is left out."""

    @property
    def home(self) -> Embedded:
        return Embedded(self.folder / "lineage")

    @property
    def path(self) -> Path:
        content: dict[str, Any] = {
            "extends": str(AVATARS / "retrain.yaml"),
            "data": {"source": str(self.portraits)} | self.data,
            "registry": self.registry,
            "trainjob": {"image": "torch", "storage": "/shared"},
        }
        cluster = {
            "endpoint": self.kfp.url,
            "namespace": "kubeflow",
            "images": {"data": f"r.example/data@sha256:{'1' * 64}", "torch": f"r.example/torch@sha256:{'2' * 64}"},
            "tracking_uri": "http://mlflow:5000",
            "ledger": self.home.url,
            "root": self.home.root,
            "records": str(self.folder / "records"),
            "state": str(self.folder / "state"),
        } | self.cluster
        content["cluster"] = {key: value for key, value in cluster.items() if value is not None}
        path = self.folder / "retrain.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    @property
    def configuration(self) -> Configuration:
        return read_configuration(self.path)

    def submit(self, *options: str) -> Result:
        return CliRunner().invoke(app, ["submit", "--config", str(self.path), *options])

    def append(self, *bodies: Body) -> None:
        ledger = self.home.open()
        for body in bodies:
            ledger.append(body, ledger.signer(body.roles[0], self.home.uri(body.roles[0])))

    def pin(self) -> None:
        self.home.set_policy(MODEL, **policy_of(self.configuration.evaluation, self.configuration.gate), reason="test")

    def judge(self, run: str, decision: str, **keys: str) -> None:
        """Enter a verdict of a run, and the version that it registered."""
        configuration = self.configuration
        policy = policy_of(configuration.evaluation, configuration.gate)
        candidate, base = f"tree-sha256:{'c' * 64}", digest_path(configuration.training.base_model)
        judged = {"run": run, "model": MODEL, "candidate": candidate, "verdict": f"sha256:{len(run):064d}"}
        self.append(
            Judged(**judged, incumbent=base, decision=decision, evaluation="", policy=policy_digest(**policy)),
            Registered(
                **judged,
                version="1",
                folder=f"tree-sha256:{'d' * 64}",
                training_key=keys.get("training_key", ""),
                evaluation_terms=keys.get("evaluation_terms", ""),
                mlflow_run="1",
                evidence={},
            ),
        )

    def settle(self) -> None:
        """Have a run of today's data, code and settings in the ledger, judged and rejected."""
        configuration, told = self.configuration, self.configuration.arguments()
        digest = take_snapshot(configuration.data, self.folder / "snapshot").digest
        sections = {**told, "training": configuration.training.deciding()}
        plan = make_plan(self.home.open().state, MODEL, digest, sections, force=False, leakage=False)
        assert plan.needed
        self.judge("earlier", "reject", training_key=plan.training_key, evaluation_terms=plan.evaluation_terms)
        self.append(Closed(run="earlier", outcome="judged"))


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_portraits("new", tmp_path_factory.mktemp("data") / "portraits", 12)


@pytest.fixture
def desk(tmp_path: Path, portraits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name in ("TRIPTYCH_JOB", "TRIPTYCH_CRONJOB", "TRIPTYCH_SERVICE_ACCOUNT", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pipelines.submission.POLL", 0.05)
    monkeypatch.setattr(Kfp.wait, "__defaults__", (0.05, 600.0))
    made = Desk(tmp_path, KfpServer(), portraits, {"model_name": MODEL})
    made.home.open()
    monkeypatch.setenv("TRIPTYCH_RUN_KEY", made.home.uri("run"))
    made.pin()
    yield made
    made.kfp.stop()
    assert made.kfp.pipelines.wrong == []
