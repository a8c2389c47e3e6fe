"""A run is named after its pipeline job, and by nothing that a schedule repeats."""

import json
import os
from pathlib import Path

import pytest
from kfp import components, dsl, local
from kfp.compiler import Compiler
from kfp.local import config

from components.image import IMAGE, step
from lineage.embedded import Embedded
from lineage.records import RUN_VARIABLE, StepRecord, read_records
from lineage.registry import Registry
from pipelines.configuration import policy_of, read_configuration
from pipelines.processes import processes
from pipelines.retraining import build_pipeline
from tests.pipelines.conftest import Stranger
from tests.runs import cut_down, some_portraits

MODEL = "portrait-avatars"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, StepRecord]]]:
    """A compiled pipeline run twice with the same parameters, on data that is refused; by the ids of the runs.

    The environment names a stranger's MLflow run, as KFP's own MLflow plugin does.
    """
    folder = tmp_path_factory.mktemp("identity")
    data = some_portraits("new", folder / "portraits", 24)
    rows = [json.loads(line) | {"consent": None} for line in (data / "metadata.jsonl").read_text().splitlines()]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configuration = read_configuration(cut_down(folder, data))
    home = Embedded(folder / "lineage")
    home.set_policy(MODEL, **policy_of(configuration.evaluation, configuration.gate), reason="for a test")
    places = str(folder / "records"), f"sqlite:///{folder / 'mlflow.db'}"
    context = home.context("what a schedule would repeat", *places, trigger="schedule nightly")
    parameters = {"run": context.model_dump(exclude={"id"}), **configuration.arguments()}
    Compiler().compile(build_pipeline(IMAGE), str(folder / "retraining.yaml"))
    pipeline = components.load_component_from_file(str(folder / "retraining.yaml"))
    stranger = Stranger.beside(Registry(f"sqlite:///{folder / 'mlflow.db'}", "somebody-else"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stranger.environment.items():
            patch.setenv(name, value)
        patch.delenv(RUN_VARIABLE, raising=False)
        patch.setattr(config.LocalExecutionConfig, "instance", None)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "root"), workspace_root="")
        for _ in range(2):
            with pytest.raises(RuntimeError, match="FAILURE"):
                pipeline(**parameters)
    stranger.check()  # though in the same store
    found = {place.name: read_records(context.records, place.name) for place in (folder / "records").iterdir()}
    return folder, found


def test_two_runs_of_one_compiled_pipeline_leave_records_apart(
    runs: tuple[Path, dict[str, dict[str, StepRecord]]],
) -> None:
    folder, found = runs
    assert len(found) == 2 and "what a schedule would repeat" not in found
    for run, records in found.items():
        assert list(records) == ["snapshot-data", "plan", "validate-data", "close-run"]
        assert {(record.run, record.trigger) for record in records.values()} == {(run, "schedule nightly")}
    state = Embedded(folder / "lineage").open().state
    assert state.outcomes == dict.fromkeys(found, "failed")
    assert state.leases == {}, "closing a run ends its lease"


def test_each_has_an_mlflow_run_of_its_own(runs: tuple[Path, dict[str, dict[str, StepRecord]]]) -> None:
    folder, found = runs
    store = Registry(f"sqlite:///{folder / 'mlflow.db'}", MODEL)
    shown = {records["plan"].facts["mlflow_run"] for records in found.values()}
    assert len(shown) == 2
    told = {store.client.get_run(run).data.tags["triptych.run"] for run in shown}
    assert told == set(found)


@step
def named() -> str:
    """What a step sees of its run."""
    import os

    return os.environ.get("TRIPTYCH_RUN", "nothing")


@dsl.pipeline(name="naming")
def naming() -> str:
    return named().output  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", ["", "an outer run"])
def test_on_this_machine_the_runner_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(RUN_VARIABLE, before)
    monkeypatch.setattr(config.LocalExecutionConfig, "instance", None)
    with processes("retraining-1", tmp_path):
        assert naming().output == "retraining-1"
    assert os.environ.get(RUN_VARIABLE, "") == before
    assert config.LocalExecutionConfig.instance is None
