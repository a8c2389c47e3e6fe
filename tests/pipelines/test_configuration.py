"""The configuration file: one clear sentence for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.configuration import read_configuration
from pipelines.errors import RequestError

AVATARS = Path("examples/avatars/retrain.yaml")


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """A configuration whose places exist."""
    places = {}
    for name in ("source", "base", "teacher", "set", "weights"):
        (tmp_path / name).mkdir()
        places[name] = name
    (tmp_path / "suite.json").write_text("{}")
    return {
        "data": {"source": "source"},
        "validation": {"suite": "suite.json"},
        "training": {"base_model": "base", "teacher": "teacher"},
        "evaluation": {"evaluation_set": "set", "scorers": [{"scorer": "any", "weights": "weights"}]},
        "gate": {"margins": {"alignment": 0.1, "realism": 0.1, "aesthetics": 0.1}},
        "registry": {"model_name": "portraits"},
    }


def write(folder: Path, content: Any, name: str = "retrain.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_relative_places_are_resolved_against_the_file(tmp_path: Path, content: dict[str, Any]) -> None:
    read = read_configuration(write(tmp_path, content))
    assert dict(read.places()) == {
        "data.source": str(tmp_path / "source"),
        "validation.suite": str(tmp_path / "suite.json"),
        "training.base_model": str(tmp_path / "base"),
        "training.teacher": str(tmp_path / "teacher"),
        "evaluation.evaluation_set": str(tmp_path / "set"),
        "evaluation.scorers[0].weights": str(tmp_path / "weights"),
    }


def test_a_model_on_the_hub_must_name_its_commit(tmp_path: Path, content: dict[str, Any]) -> None:
    content["training"]["teacher"] = "hf://owner/name@main"
    with pytest.raises(RequestError, match=r"training\.teacher: hf://owner/name@main names no commit"):
        read_configuration(write(tmp_path, content))


def test_plain_fine_tuning_names_no_teacher(tmp_path: Path, content: dict[str, Any]) -> None:
    content["training"] = {"base_model": "base", "supervision": {"enabled": False}}
    assert "training.teacher" not in dict(read_configuration(write(tmp_path, content)).places())


def test_a_file_may_build_on_another(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path, content)
    (tmp_path / "inner").mkdir()
    top = {"extends": "../retrain.yaml", "training": {"steps": 7}, "data": {"source": "."}}
    read = read_configuration(write(tmp_path / "inner", top))
    assert read.training.steps == 7
    assert read.data.source == str(tmp_path / "inner")
    assert str(read.training.base_model) == str(tmp_path / "base")


def _set(section: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[section].__setitem__(key, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set("training", "learnin_rate", 1), "unknown key training.learnin_rate; did you mean 'learning_rate'?"),
        (lambda c: c.__setitem__("trainning", {}), "unknown key trainning; did you mean 'training'?"),
        (_set("gate", "slices", {"a": {"mesure": "x"}}), "unknown key gate.slices.a.mesure; did you mean 'measure'?"),
        (_set("training", "steps", "many"), "training.steps: Input should be a valid integer"),
        (_set("training", "base_model", "nowhere"), "training.base_model is"),
        (_set("evaluation", "scorers", []), "evaluation.scorers"),
        (_set("gate", "margins", {"alignment": 0.1}), "no margin for realism, aesthetics"),
        (lambda c: c.pop("registry"), "registry: Field required"),
        (lambda c: c.__setitem__("extends", "retrain.yaml"), "extends itself"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, content: dict[str, Any], spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    spoil(content)
    with pytest.raises(RequestError) as raised:
        read_configuration(write(tmp_path, content))
    assert message in str(raised.value)
    assert "retrain.yaml" in str(raised.value)


@pytest.mark.parametrize(("text", "message"), [("- a list", "no sections"), ("a: [", "is not YAML")])
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_configuration(path)


def test_the_command_line_refuses_a_bad_request_with_status_2(tmp_path: Path, content: dict[str, Any]) -> None:
    content["training"]["stepps"] = 3
    path = write(tmp_path, content)
    result = CliRunner().invoke(app, ["retrain", "--config", str(path), "--work-dir", str(tmp_path / "work")])
    assert result.exit_code == 2
    assert "did you mean 'steps'" in result.output
    assert not (tmp_path / "work").exists()
    absent = CliRunner().invoke(app, ["retrain", "--config", str(tmp_path / "absent.yaml")])
    assert absent.exit_code == 2
    assert "absent.yaml cannot be read" in absent.output


def test_the_shuffled_run_differs_in_its_data_alone() -> None:
    shuffled = yaml.safe_load(AVATARS.with_name("shuffled-captions.yaml").read_text())
    assert shuffled == {"extends": AVATARS.name, "data": {"source": "data/shuffled"}}


def test_training_on_a_cluster_is_a_section_that_may_be_left_out(tmp_path: Path, content: dict[str, Any]) -> None:
    assert "trainjob" not in read_configuration(write(tmp_path, content)).arguments()
    content["trainjob"] = {"storage": "/shared", "image": "any", "resources": {"gpu": 4}}
    read = read_configuration(write(tmp_path, content))
    assert read.arguments()["trainjob"]["resources"] == {"gpu": "4"}
    content["trainjob"]["node"] = 2
    with pytest.raises(RequestError, match=r"unknown key trainjob\.node; did you mean 'nodes'"):
        read_configuration(write(tmp_path, content))


def save_set(folder: Path, *texts: str) -> str:
    """An evaluation set, or one to choose weights by, that asks ``texts``."""
    folder.mkdir(exist_ok=True)
    sampling = {"num_inference_steps": 1, "guidance_scale": 1, "max_sequence_length": 1, "height": 8, "width": 8}
    (folder / "set.json").write_text(json.dumps({"name": folder.name, "version": 1, **sampling}))
    asked = [{"id": f"{folder.name}-{i}", "text": t, "seeds": [0], "attributes": {}} for i, t in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in asked))
    return folder.name


def test_weights_are_chosen_by_those_who_judge_unless_others_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    save_set(tmp_path / "set", "a beard")
    content["training"]["selection"] = {"selection_set": save_set(tmp_path / "choosing", "no beard")}
    content["evaluation"]["drawing"] = {"precision": "bfloat16"}
    read = read_configuration(write(tmp_path, content))
    selection = read.training.selection
    assert (selection.scorers, selection.margins) == (
        ({"scorer": "any", "weights": str(tmp_path / "weights")},),
        {"alignment": 0.1, "realism": 0.1, "aesthetics": 0.1},
    )
    assert selection.drawing == {"precision": "bfloat16"}
    assert dict(read.places())["training.selection.selection_set"] == str(tmp_path / "choosing")
    own = {"margins": {"alignment": 0.2, "realism": 0.2, "aesthetics": 0.2}, "drawing": {"device": "cpu"}}
    content["training"]["selection"] |= own
    selection = read_configuration(write(tmp_path, content)).training.selection
    assert (selection.margins, selection.drawing) == (own["margins"], own["drawing"])


def test_weights_are_not_chosen_by_what_they_are_judged_by(tmp_path: Path, content: dict[str, Any]) -> None:
    save_set(tmp_path / "set", "a beard", "glasses", "both")
    content["training"]["selection"] = {"selection_set": save_set(tmp_path / "choosing", "neither", "Glasses")}
    with pytest.raises(
        RequestError,
        match=r"retrain.yaml: 1 of .*'s prompts, such as set-1, are in training\.selection\.selection_set too: ",
    ):
        read_configuration(write(tmp_path, content))
    content["training"]["selection"] = {"selection_set": "set"}
    with pytest.raises(RequestError, match=r"3 of evaluation\.evaluation_set's prompts"):
        read_configuration(write(tmp_path, content))
    (tmp_path / "choosing" / "set.json").unlink()
    content["training"]["selection"] = {"selection_set": "choosing"}
    with pytest.raises(RequestError, match=r"evaluation set at .*choosing cannot be read"):
        read_configuration(write(tmp_path, content))
    del content["training"]["selection"]
    (tmp_path / "replay.txt").write_text("a beard\nboth\nneither\n", "utf-8")
    content["training"]["replay"] = {"captions": "replay.txt"}
    with pytest.raises(RequestError, match=r"2 of .*'s prompts, such as set-0, are in training\.replay\.captions too"):
        read_configuration(write(tmp_path, content))
    (tmp_path / "replay.txt").write_text("\n", "utf-8")
    with pytest.raises(
        RequestError, match=r"training\.replay\.captions, .*, has a row without a caption, or none at all"
    ):
        read_configuration(write(tmp_path, content))


def test_an_axis_without_a_margin_cannot_choose(tmp_path: Path, content: dict[str, Any]) -> None:
    save_set(tmp_path / "set", "a beard")
    margins = {"alignment": 0.1, "realism/kid": 0.1, "aesthetics": 0.1}
    content["training"]["selection"] = {"selection_set": save_set(tmp_path / "choosing", "no beard")}
    content["gate"]["margins"] = margins
    with pytest.raises(
        RequestError, match=r"training\.selection: .*selection has no margin for realism; give each axis"
    ):
        read_configuration(write(tmp_path, content))
