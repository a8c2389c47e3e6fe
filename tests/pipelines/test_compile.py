"""The pipeline for a cluster: compiled without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

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


@pytest.mark.parametrize("shards", ["0", "-1", "some"])
def test_no_tasks_are_refused(tmp_path: Path, shards: str) -> None:
    asked = CliRunner().invoke(app, ["compile", "--output", str(tmp_path / "x.yaml"), "--sample-shards", shards])
    assert asked.exit_code == 2
