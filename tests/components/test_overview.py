"""What MLflow's pages show of a run."""

from __future__ import annotations

from pathlib import Path

from components.plan.overview import parameters, show_run
from lineage.registry import Registry
from pipelines.configuration import read_configuration
from tests.runs import AVATARS, run_context


def test_settings_in_which_runs_differ_are_flat_and_few() -> None:
    shown = dict(parameters(read_configuration(AVATARS / "retrain.yaml").arguments()))
    assert {"data.source": "new", "training.steps": "200", "gate.margins.realism": "0.01"}.items() <= shown.items()
    assert shown["training.base_model"] == "base", "its place on this machine tells nobody anything"
    assert len(shown) < 25
    assert dict(parameters({"evaluation": {"limit": 48.0}})) == {"evaluation.limit": "48"}, "KFP knows no integers"


def test_a_run_says_who_started_it_from_which_commit(tmp_path: Path, migrated: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    store = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "portraits")
    context = run_context(tmp_path).model_copy(update={"user": "ada", "commit": "abc", "trigger": "schedule nightly"})
    run = store.open_run(context.id)
    for _ in range(2):  # a step that is tried again
        show_run(store, run, context, {"training": {"steps": 3, "lora": None}})
    found = store.client.get_run(run)
    assert found.data.params == {"training.steps": "3"}
    told = {name.removeprefix("mlflow."): value for name, value in found.data.tags.items()}
    assert (told["user"], told["source.git.commit"], told["source.name"]) == ("ada", "abc", "schedule nightly")
    experiment = store.client.get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "triptych.decision" in experiment.tags["mlflow.sharedViewState.verdicts"]
