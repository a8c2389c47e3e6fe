"""The pipeline for a cluster: compiled without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lineage.whereabouts import FIELDS
from pipelines.cli import app


def compiled(folder: Path, *options: str) -> dict[str, Any]:
    """The first document of the YAML, which is the pipeline itself."""
    target = folder / "retraining.yaml"
    done = CliRunner().invoke(app, ["compile", "--output", str(target), "--image", "portraits@sha256:0", *options])
    assert done.exit_code == 0, done.output
    spec: dict[str, Any] = next(yaml.safe_load_all(target.read_text()))
    return spec


def loops(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every task that runs once for each item of a list."""
    dags = [spec["root"], *spec["components"].values()]
    tasks = [task for one in dags for task in one.get("dag", {}).get("tasks", {}).values()]
    return [task for task in tasks if "parameterIterator" in task]


def test_samples_are_drawn_in_as_many_tasks_as_asked(tmp_path: Path) -> None:
    (loop,) = loops(compiled(tmp_path, "--sample-shards", "3"))
    assert yaml.safe_load(loop["parameterIterator"]["items"]["raw"]) == [0, 1, 2]


def test_one_task_judges_what_it_draws_unless_asked(tmp_path: Path) -> None:
    spec = compiled(tmp_path)
    assert loops(spec) == []
    images = {one["container"]["image"] for one in spec["deploymentSpec"]["executors"].values()}
    assert images == {"portraits@sha256:0"}


def executors(spec: dict[str, Any], component: dict[str, Any], without: str) -> list[str]:
    """Names of the steps below a component, but for those in the branch ``without``."""
    if "executorLabel" in component:
        return [component["executorLabel"]]
    tasks = [task for task in component["dag"]["tasks"].values() if task["taskInfo"]["name"] != without]
    below = [spec["components"][task["componentRef"]["name"]] for task in tasks]
    return [name for inner in below for name in executors(spec, inner, without)]


def test_a_run_that_finds_nothing_new_costs_at_most_five_executors(tmp_path: Path) -> None:
    spec = compiled(tmp_path)
    paid = executors(spec, spec["root"], "needed")
    assert {name.removeprefix("exec-") for name in paid} == {"snapshot-data", "plan", "nothing-new", "close-run"}
    assert len(paid) <= 5


@pytest.mark.parametrize("shards", ["0", "-1", "some"])
def test_no_tasks_are_refused(tmp_path: Path, shards: str) -> None:
    asked = CliRunner().invoke(app, ["compile", "--output", str(tmp_path / "x.yaml"), "--sample-shards", shards])
    assert asked.exit_code == 2


def test_each_step_is_told_in_which_pod_it_runs(tmp_path: Path) -> None:
    compiled(tmp_path)
    spec, platform = yaml.safe_load_all((tmp_path / "retraining.yaml").read_text())
    told = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(told) == set(spec["deploymentSpec"]["executors"]), "the exit step too"
    for executor in told.values():
        fields = {one["name"]: one["fieldPath"] for one in executor["fieldPathAsEnv"]}
        assert fields == {f"TRIPTYCH_{name}": field for name, field in FIELDS.items()}


def test_every_step_gets_the_jobs_id_and_the_run_has_none_of_its_own(tmp_path: Path) -> None:
    spec = compiled(tmp_path)
    dags = [spec["root"], *spec["components"].values()]
    tasks = [task for one in dags for task in one.get("dag", {}).get("tasks", {}).values()]
    steps = [task["inputs"]["parameters"] for task in tasks if "job" in task.get("inputs", {}).get("parameters", {})]
    assert len(steps) == len(spec["deploymentSpec"]["executors"])
    assert {one["job"]["runtimeValue"]["constant"] for one in steps} == {"{{$.pipeline_job_uuid}}"}
