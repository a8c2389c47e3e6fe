"""Real runs of the avatars pipeline on a cut-down configuration, shared by the tests that look at them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lineage.registry import Registry
from tests.runs import AVATARS, cut_down, some_portraits, triptych

UNHELD = {"replay": {"captions": None}, "selection": {"selection_set": None}}
"""Nothing holds the model to what it knows: within margins as wide as these, replay makes good for wrong captions."""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder that the runs share, as they would at a desk."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def good_configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return cut_down(folder, some_portraits("new", folder / "portraits"))


@dataclass(frozen=True)
class Stranger:
    """An MLflow run that is not ours, under way, named by the environment as KFP's MLflow plugin does it for steps."""

    store: Registry
    run: str

    @classmethod
    def beside(cls, store: Registry) -> Stranger:
        run = store.open_run("a step of KFP's")
        store.client.log_param(run, "kept", "yes")
        return cls(store, run)

    @property
    def environment(self) -> dict[str, str]:
        experiment = self.store.client.get_run(self.run).info.experiment_id
        told = {"MLFLOW_TRACKING_URI": self.store.tracking_uri, "MLFLOW_EXPERIMENT_ID": experiment}
        return {**told, "MLFLOW_RUN_ID": self.run}

    def check(self) -> None:
        """It goes on as it was, and nothing came to its experiment."""
        run = self.store.client.get_run(self.run)
        assert run.info.status == "RUNNING"
        assert (run.data.params, run.data.metrics) == ({"kept": "yes"}, {})
        assert {tag for tag in run.data.tags if not tag.startswith("mlflow.")} == {"triptych.run"}  # `open_run`'s
        assert self.store.client.list_artifacts(self.run) == []
        found = self.store.client.search_runs([run.info.experiment_id])
        assert [one.info.run_id for one in found] == [self.run]


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """In a store of its own."""
    folder = tmp_path_factory.mktemp("stranger")
    return Stranger.beside(Registry(f"sqlite:///{folder / 'mlflow.db'}", "somebody-else"))


@pytest.fixture(scope="session")
def promoted(work: Path, good_configuration: Path, stranger: Stranger) -> subprocess.CompletedProcess[str]:
    """A first run on good data, in an environment that names a stranger's MLflow run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stranger.environment.items():
            patch.setenv(name, value)
        return triptych("retrain", "--config", good_configuration, "--work-dir", work)


@pytest.fixture(scope="session")
def rejected(
    work: Path, promoted: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A second run, on shuffled captions."""
    folder = tmp_path_factory.mktemp("shuffled")
    path = cut_down(folder, some_portraits("shuffled", folder / "portraits"), training=UNHELD)
    return triptych("retrain", "--config", path, "--work-dir", work)


@pytest.fixture(scope="session")
def repeated(
    work: Path, rejected: subprocess.CompletedProcess[str], good_configuration: Path
) -> subprocess.CompletedProcess[str]:
    """A third run, on the good data again."""
    return triptych("retrain", "--config", good_configuration, "--work-dir", work)


FAILING_SCORER = """import json, sys

for picture in json.load(open(sys.argv[1]))["pictures"]:
    if picture["attributes"]["glasses"]:
        sys.exit(f"a lens cracked at {picture['prompt']!r}")
"""


@pytest.fixture(scope="session")
def invalid_configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shuffled captions again, judged by a scorer that fails on some picture."""
    folder = tmp_path_factory.mktemp("invalid")
    (folder / "scorer").mkdir()
    (folder / "scorer" / "score.py").write_text(FAILING_SCORER)
    options = {"name": "opticians", "axis": "aesthetics", "command": [sys.executable, "score.py"]}
    scorers = [
        {"scorer": "avatars-alignment", "weights": str(AVATARS / "models" / "scorers" / "alignment.safetensors")},
        {"scorer": "process", "weights": str(folder / "scorer"), "options": options},
    ]
    changes: dict[str, Any] = {"training": UNHELD, "evaluation": {"scorers": scorers}}
    return cut_down(folder, some_portraits("shuffled", folder / "portraits"), **changes)


@pytest.fixture(scope="session")
def invalid(
    work: Path, repeated: subprocess.CompletedProcess[str], invalid_configuration: Path
) -> subprocess.CompletedProcess[str]:
    """A fourth run: the second one's candidate and samples are known, and cannot be judged."""
    return triptych("retrain", "--config", invalid_configuration, "--work-dir", work)
