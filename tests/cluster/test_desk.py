"""``triptych submit`` from a desk: an overlay's configuration, and what only the cluster knows read from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lineage.embedded import Embedded
from lineage.entries import Closed
from pipelines.cli import app
from pipelines.configuration import Configuration, read_configuration
from pipelines.errors import RequestError
from pipelines.submission import Kfp
from tests.apiserver.objects import held, put
from tests.cluster.answers import AnswersServer
from tests.cluster.conftest import use
from tests.cluster.kfp import KfpServer
from tests.runs import AVATARS
from tests.servers.governed import free_port

OVERLAYS = Path("infra/kubernetes/overlays").resolve()
PRODUCTION = OVERLAYS / "production" / "retrain.yaml"
KNOWN: dict[str, Any] = {
    "root": "0" * 64,
    "images": {"data": f"r/data@sha256:{'1' * 64}", "torch": f"r/torch@sha256:{'2' * 64}"},
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that only the CronJob has."""
    for name in ("TRIPTYCH_ROOT", "TRIPTYCH_DATA_IMAGE", "TRIPTYCH_TORCH_IMAGE", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    monkeypatch.setattr(Kfp.wait, "__defaults__", (0.05, 600.0))
    running = KfpServer()
    yield running
    running.stop()
    assert running.pipelines.wrong == []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnswersServer]:
    """A cluster with the manifests applied, and the ledger's root key told."""
    running = AnswersServer(tmp_path)
    use(running.kubeconfig, monkeypatch)
    home = Embedded(tmp_path / "lineage")
    home.open()
    put(running.known, held("ConfigMap", "triptych-trust", **{"root-id": home.root}))
    containers = [{"name": name, "image": image} for name, image in KNOWN["images"].items()]
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "triptych-images"}}
    put(running.known, template | {"template": {"spec": {"containers": containers}}})
    yield running
    running.stop()


def submit(*options: str, config: Path = PRODUCTION) -> Result:
    return CliRunner().invoke(app, ["submit", "--config", str(config), *options])


def test_the_first_run_as_documented(cluster: AnswersServer, kfp: KfpServer, tmp_path: Path) -> None:
    """Data, models and in-cluster names are not to be had here; root key and images come from the cluster."""
    home = Embedded(tmp_path / "lineage")

    def end(pipelines: Any) -> None:
        ledger = home.open()
        body = Closed(run=next(iter(pipelines.runs)), outcome="promoted")
        ledger.append(body, ledger.signer("run", home.uri("run")))

    kfp.pipelines.ends["*"], kfp.pipelines.on_look = ["SUCCEEDED"], end
    done = submit("--context", "test", "--kfp", kfp.url, "--server", home.url, "--wait")
    assert done.exit_code == 0 and done.output.splitlines()[-1] == "promoted", done.output
    (run,) = kfp.pipelines.runs.values()
    assert f"https://kubeflow.example.org/pipeline/#/runs/details/{run['run_id']}" in done.output
    told = run["runtime_config"]["parameters"]
    assert told["run"]["root"] == home.root and told["run"]["ledger"] == "http://triptych-mlflow:5000"
    assert told["data"]["source"] == "s3://portraits/new" and told["training"]["base_model"] == "/shared/models/base"
    executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert {one["container"]["image"] for one in executors} == set(KNOWN["images"].values())
    assert not [line for line in cluster.known.asked if not line.startswith("GET")], "the cluster itself is only read"


def test_what_nothing_says_is_named_at_once(kfp: KfpServer) -> None:
    done = submit("--kfp", kfp.url)
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1
    for name in ("TRIPTYCH_ROOT", "TRIPTYCH_DATA_IMAGE", "TRIPTYCH_TORCH_IMAGE", "--context"):
        assert name in done.output
    assert kfp.pipelines.asked == []


def test_the_variables_do_too(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_ROOT", "0" * 64)
    monkeypatch.setenv("TRIPTYCH_DATA_IMAGE", "r/data@sha256:0")
    monkeypatch.setenv("TRIPTYCH_TORCH_IMAGE", "r/torch@sha256:0")
    assert submit("--kfp", kfp.url).exit_code == 0


def test_a_cluster_without_the_manifests_is_told(cluster: AnswersServer, kfp: KfpServer) -> None:
    cluster.known.objects.clear()
    cluster.known.objects["/version"] = {"gitVersion": "v1.36.0"}
    done = submit("--context", "test", "--kfp", kfp.url)
    assert done.exit_code == 2 and "triptych doctor --context test says what is missing" in done.output
    cluster.known.status["/version"] = 401
    assert "log in again" in submit("--context", "test", "--kfp", kfp.url).output
    assert "no cluster to ask" in submit("--context", "elsewhere", "--kfp", kfp.url).output


def test_names_of_the_cluster_that_mean_nothing_here_are_told(cluster: AnswersServer) -> None:
    done = submit("--context", "test", "--kfp", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 2 and "forward its port and name that by --kfp" in done.output, done.output


@pytest.mark.parametrize("options", [(), ("--if-new",)])
def test_a_model_on_the_hub_is_refused(kfp: KfpServer, tmp_path: Path, options: tuple[str, ...]) -> None:
    place = f"hf://owner/name@{'a' * 40}"
    (tmp_path / "retrain.yaml").write_text(f"extends: {PRODUCTION}\ntraining: {{teacher: '{place}'}}\n")
    done = submit("--kfp", kfp.url, *options, config=tmp_path / "retrain.yaml")
    assert done.exit_code == 2 and "training.teacher lies on the Hub" in done.output, done.output
    assert kfp.pipelines.asked == []


def test_the_schedule_still_looks_at_what_lies_where_it_runs(cluster: AnswersServer, kfp: KfpServer) -> None:
    done = submit("--context", "test", "--kfp", kfp.url, "--if-new")
    assert done.exit_code == 2 and "validation.suite is /shared/models/expectations.json, and nothing" in done.output


def whole(overlay: str, folder: Path) -> Configuration:
    """All sections of an overlay's configuration."""
    content = yaml.safe_load((OVERLAYS / overlay / "retrain.yaml").read_text())
    if "extends" in content:  # what up.sh copies there
        assert content["extends"] == "/shared/avatars/retrain.yaml"
        content["extends"] = str(AVATARS / "retrain.yaml")
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_configuration(path, None, KNOWN, here=False)


@pytest.mark.parametrize("overlay", ["kind", "production"])
def test_the_whole_configuration_of_an_overlay_holds(overlay: str, tmp_path: Path) -> None:
    read = whole(overlay, tmp_path)
    assert read.cluster and read.cluster.images == KNOWN["images"]
    sections = {name for name in Configuration.model_fields if getattr(read, name) is not None}
    assert sections >= {"data", "validation", "training", "evaluation", "gate", "registry", "cluster"}
    shared = [place for _, place in read.places() if place.startswith("/")]
    volumes = read.cluster.needs("default").volumes.values()
    if overlay == "production":
        assert shared and all(any(place.startswith(f"{at}/") for at in volumes) for place in shared)


def test_a_wrong_key_in_any_section_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load(PRODUCTION.read_text())
    for section in content:
        broken = {**content, section: {**content[section], "typo": 1}}
        (tmp_path / "retrain.yaml").write_text(yaml.safe_dump(broken))
        with pytest.raises(RequestError, match=rf"unknown key {section}\.typo"):
            read_configuration(tmp_path / "retrain.yaml", None, KNOWN, here=False)
