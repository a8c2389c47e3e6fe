"""The two steps as KFP runs them, and the curves as MLflow keeps them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl, local
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.encode_features.component import encode_features
from components.fine_tune.candidate import fetch_candidate
from components.fine_tune.component import fine_tune
from lineage.digests import LineageError, digest_path
from lineage.records import read_records
from tests.runs import run_context
from tests.training.conftest import Trained, World
from tests.training.tiny import save_validated
from training.encode.info import features_digest
from training.errors import TrainingError
from training.launch.watching import MlflowCurves, MlflowRun
from training.train.curves import read_points


def test_encode_features_runs_as_a_step_and_leaves_its_record(world: World, tmp_path: Path) -> None:
    validated = tmp_path / "root" / "validated"
    shutil.copytree(world.validated, validated)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))

    @dsl.pipeline
    def encoding(run: dict, training: dict, place: str) -> str:
        found = dsl.importer(artifact_uri=place, artifact_class=dsl.Dataset, reimport=False)
        return encode_features(run=run, job="run-1", training=training, validated=found.output).outputs["Output"]

    run = run_context(tmp_path).model_dump(exclude={"id"})
    done = encoding(run=run, training=world.settings().model_dump(mode="json"), place=str(validated))
    record = read_records(run["records"], "run-1")["encode-features"]
    assert record.status == "complete" and record.outputs["features"] == done.output
    assert record.outputs["features"] == features_digest(world.features)
    assert {"validated", "base_model", "teacher"} <= record.inputs.keys()


def test_fine_tune_compiles_with_the_outputs_that_later_steps_read(tmp_path: Path) -> None:
    compiler.Compiler().compile(fine_tune, str(tmp_path / "fine_tune.json"))
    outputs = json.loads((tmp_path / "fine_tune.json").read_text())["components"]["comp-fine-tune"]["outputDefinitions"]
    assert outputs["artifacts"].keys() == {"candidate", "curves", "training_record"}
    assert outputs["parameters"].keys() == {"digest"}


def test_the_step_refuses_features_of_another_snapshot(world: World, tmp_path: Path) -> None:
    others = save_validated(tmp_path / "validated", world.rows[1:])
    names = ("candidate", "curves", "training_record")
    with pytest.raises(TrainingError, match=r"snapshot: sha256:.* -> sha256:.*; encode them again"):
        fine_tune.python_func(
            run=run_context(tmp_path).model_dump(exclude={"id"}),
            job="run-1",
            training=world.settings().model_dump(mode="json"),
            trainjob={},
            mlflow_run="",
            reuse_uri="",
            reuse_digest="",
            validated=dsl.Dataset(uri=str(others)),
            features=dsl.Dataset(uri=str(world.features)),
            **{name: dsl.Artifact(uri=str(tmp_path / name)) for name in names},
        )
    assert not any((tmp_path / name).exists() for name in names), "nothing was trained"
    record = read_records(str(tmp_path / "records"), "run-1")["fine-tune"]
    assert record.status == "failed" and record.inputs.keys() == {"validated", "features"}


def _fetch(trained: Trained, digest: str, place: Path) -> dict[str, Any]:
    place.mkdir()
    return fetch_candidate(str(trained.candidate), digest, "", place / "candidate", place / "curves", place / "record")


def test_a_known_candidate_is_fetched_and_checked(trained: Trained, tmp_path: Path) -> None:
    facts = _fetch(trained, trained.record.candidate, tmp_path / "step")
    assert digest_path(tmp_path / "step" / "candidate") == trained.record.candidate == facts["candidate"]
    assert trained.candidate.is_dir(), "the original stays"
    assert "Nothing was trained" in (tmp_path / "step" / "curves").read_text()


@pytest.mark.parametrize("digest", ["", "sha256:0000"])
def test_a_candidate_with_another_digest_is_refused(trained: Trained, tmp_path: Path, digest: str) -> None:
    with pytest.raises(LineageError, match="they were changed after they were recorded"):
        _fetch(trained, digest, tmp_path / "step")
    assert not (tmp_path / "step" / "candidate").exists()


def test_curves_reach_mlflow(trained: Trained, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("training")).info.run_id
    curves = MlflowCurves(MlflowRun(uri, run))
    for point in read_points(trained.curves):
        curves.log(point.metrics(), point.step)
    assert curves.error is None
    assert [m.step for m in client.get_metric_history(run, "training/loss")] == [2, 4, 5]
    assert len(client.get_metric_history(run, "training/loss_local")) == 2


def test_a_run_that_mlflow_does_not_know_costs_the_curves_only(trained: Trained, tmp_path: Path) -> None:
    curves = MlflowCurves(MlflowRun(f"sqlite:///{tmp_path / 'mlflow.db'}", "0" * 32))
    for point in read_points(trained.curves):
        curves.log(point.metrics(), point.step)
    assert curves.error is not None and "not found" in curves.error


def test_an_mlflow_that_was_away_for_a_while_has_every_point_in_the_end(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("training")).info.run_id
    curves = MlflowCurves(MlflowRun(uri, run))
    first, *rest = read_points(trained.curves)
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(MlflowException("away")))
        curves.log(first.metrics(), first.step)
        assert curves.error is not None and "away" in curves.error
    curves.log(rest[0].metrics(), rest[0].step)
    assert not client.get_metric_history(run, "training/loss"), "it is not asked again at once"
    curves.close()
    curves.log(rest[1].metrics(), rest[1].step)
    assert curves.error is None
    assert [m.step for m in client.get_metric_history(run, "training/loss")] == [2, 4, 5]
