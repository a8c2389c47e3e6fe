"""Which credentials a run in containers hands on, and to which steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.configuration import local_path
from pipelines.containers import bucket_environment, step_of
from pipelines.steps import STEPS

AROUND = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    "AWS_SESSION_TOKEN": "",
    "AWS_PROFILE": "a file that steps do not see",
    "HF_TOKEN": "token",
    "PATH": "/usr/bin",
}


def test_a_bucket_needs_its_credentials_and_no_others() -> None:
    assert bucket_environment(["/data", "s3://bucket/portraits"], AROUND) == {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    }
    assert bucket_environment(["hf://datasets/owner/portraits"], AROUND) == {"HF_TOKEN": "token"}


@pytest.mark.parametrize("places", [[], ["/data", "", "file:///data"], ["gs://bucket"]])
def test_places_that_need_none_get_none(places: list[str]) -> None:
    assert bucket_environment(places, AROUND) == {}


def test_the_table_of_steps_has_those_of_the_pipeline_and_no_others(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compile", "--sample-shards", "2", "--output", str(tmp_path / "retraining.yaml")])
    assert done.exit_code == 0, done.output
    spec = next(yaml.safe_load_all((tmp_path / "retraining.yaml").read_text()))
    executors = [one["container"] for one in spec["deploymentSpec"]["executors"].values()]
    found = [step_of([*one["command"], *one["args"]]) for one in executors]
    assert sorted(found) == sorted(STEPS)
    assert step_of(["sh", "-c", "true"]) == ""


@pytest.mark.parametrize(
    ("place", "path"), [("/data", "/data"), ("file:///data", "/data"), ("s3://bucket", ""), ("", "")]
)
def test_what_lies_on_this_machine_is_mounted(place: str, path: str) -> None:
    assert local_path(place) == path
