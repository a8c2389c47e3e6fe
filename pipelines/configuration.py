"""The configuration of a retraining: one typed YAML file, one section for each room that reads it.

Unknown keys are refused with the nearest known name. Relative places are resolved against the file they stand in.
A file may build on another one with ``extends: other.yaml``; what it says itself comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, create_model

from components.evaluate.settings import EvaluationSettings
from components.fine_tune.settings import TrainJobSettings
from components.gate.settings import GateSettings, missing_axes
from components.snapshot_data.settings import DataSettings
from components.validate_data.settings import ValidationSettings
from lineage.digests import LineageError
from lineage.frozen import Frozen
from lineage.policy import by_content
from lineage.registry import RegistrySettings
from pipelines.cluster import ClusterSettings
from pipelines.errors import RequestError
from pipelines.places import HUB, local
from training.encode.captions import replayed_captions
from training.errors import TrainingError
from training.settings import TrainingSettings

PLACES = (
    ("data", "source"),
    ("validation", "suite"),
    ("validation", "tokenizer"),
    ("training", "base_model"),
    ("training", "teacher"),
    ("training", "structure_model"),
    ("training", "replay", "captions"),
    ("training", "selection", "selection_set"),
    ("evaluation", "evaluation_set"),
)
"""Keys of whatever a run reads, beside the scorers' weights."""
MODELS = ("base_model", "teacher", "structure_model")
"""Those under ``training`` that may also lie on the Hugging Face Hub."""
SCORERS = (("evaluation", "scorers"), ("training", "selection", "scorers"))
Model = TypeVar("Model", bound=BaseModel)


class LineageSettings(Frozen):
    """Settings of the OpenLineage events that a run emits."""

    openlineage: str | None = None
    """Where OpenLineage events go: an ``http(s)://`` address or a file. None: a file in the work folder."""


class Configuration(Frozen):
    """Everything a retraining is told."""

    data: DataSettings
    validation: ValidationSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    gate: GateSettings
    registry: RegistrySettings
    lineage: LineageSettings = LineageSettings()
    trainjob: TrainJobSettings | None = None
    """Train on a cluster; None: where the step runs."""
    cluster: ClusterSettings | None = None
    """The Kubeflow cluster of ``triptych submit``; None: there is none."""

    def arguments(self) -> dict[str, Any]:
        """One JSON object a section: the parameters of the pipeline, which cannot hold nulls."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"lineage", "cluster"})

    def places(self) -> Iterator[tuple[str, str]]:
        """(key, place) of everything the run reads: local paths or URIs."""
        return _places(self)


def read_configuration(
    path: Path, source: str | None = None, cluster: Mapping[str, Any] = MappingProxyType({}), here: bool = True
) -> Configuration:
    """Read and check a configuration file.

    Args:
        source: takes the place of ``data.source``.
        cluster: keys that take the place of those in the section ``cluster``.
        here: the run reads its data and models from this machine; else they are not looked at.

    Raises:
        RequestError: the file is missing, is not YAML, has an unknown or wrong key, or names a place that is not there.
    """
    changes = {"data": {"source": source}} if source is not None else {}
    return _read(path, Configuration, {**changes, "cluster": cluster} if cluster else changes, here)


def read_sections(path: Path, *names: str) -> Any:
    """Some sections of a configuration file, as attributes, checked as `read_configuration` does. The rest of the file
    is not looked at, and no model is fetched for it."""
    sections: dict[str, Any] = {name: (Configuration.model_fields[name].annotation, ...) for name in names}
    return _read(path, create_model("Sections", **sections))


def raw_section(path: Path, name: str) -> dict[str, Any]:
    """A section of a configuration file as it stands there, not checked; an empty one where there is none."""
    return _section(_read_yaml(path.resolve(), ()), [name])


def policy_of(evaluation: EvaluationSettings, gate: GateSettings) -> dict[str, dict[str, Any]]:
    """The policy that two sections are, in the form in which the steps evaluate and gate put it into a verdict."""
    return {"evaluation": by_content(evaluation.model_dump(mode="json")), "gate": gate.model_dump(mode="json")}


def _read(
    path: Path, model: type[Model], changes: Mapping[str, Any] = MappingProxyType({}), here: bool = True
) -> Model:
    try:
        content = _merge(_read_yaml(path.resolve(), ()), changes)
        _judge_alike(content)
        for key in MODELS:
            if here and "training" in model.model_fields:
                _fetch(content.get("training"), key)
        read = model.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{path}: " + "; ".join(_explain(problem) for problem in error.errors())) from error
    for key, place in _places(read) if here else ():
        if is_local(place) and not Path(place).exists():
            raise RequestError(f"{path}: {key} is {place}, and nothing is there")
    if here:
        _check_apart(path, read)
    gate = getattr(read, "gate", None)
    if gate and (unset := missing_axes(gate.margins)):
        raise RequestError(f"{path}: gate.margins has no margin for {', '.join(unset)}; every axis needs one")
    return read


def _check_apart(path: Path, read: BaseModel) -> None:
    """Refuse to choose weights by the prompts that they will be judged by, or to replay these."""
    training, evaluation = getattr(read, "training", None), getattr(read, "evaluation", None)
    if not (training and evaluation):
        return
    chosen_by, replayed = training.selection.selection_set, training.replay.captions
    if not (chosen_by or replayed):
        return
    from components.evaluate.evaluation_set import read_evaluation_set

    seen: dict[str, set[str]] = {}
    try:
        judged = {p.text.casefold(): p.id for p in read_evaluation_set(evaluation.evaluation_set).prompts}
        if chosen_by:
            seen["selection.selection_set"] = {p.text.casefold() for p in read_evaluation_set(str(chosen_by)).prompts}
        if replayed:
            seen["replay.captions"] = {caption.casefold() for caption in replayed_captions(replayed)}
    except (LineageError, TrainingError) as error:
        raise RequestError(f"{path}: {error}") from error
    for key, texts in seen.items():
        if both := sorted(judged[text] for text in texts & judged.keys()):
            raise RequestError(
                f"{path}: {len(both)} of evaluation.evaluation_set's prompts, such as {both[0]}, are in training.{key} "
                "too: weights would be judged by what made them; take other prompts there"
            )


def _places(read: BaseModel) -> Iterator[tuple[str, str]]:
    for name, section, key in _named(read.model_dump(mode="json")):
        if (place := section.get(key)) is not None:
            yield name, place


def _named(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each key that may name a place: how messages call it, the section that it is in, and its name there."""
    for *path, key in PLACES:
        yield ".".join([*path, key]), _section(content, path), key
    for *path, key in SCORERS:
        for index, scorer in enumerate(_section(content, path).get(key) or ()):
            yield f"{'.'.join([*path, key])}[{index}].weights", scorer if isinstance(scorer, dict) else {}, "weights"


def _section(content: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """The section at ``path``; an empty one where there is none."""
    found: Any = content
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _judge_alike(content: dict[str, Any]) -> None:
    """Where a selection set is named, weights are compared on it by evaluation's scorers and the gate's margins."""
    selection, evaluation = (_section(content, path) for path in (["training", "selection"], ["evaluation"]))
    if selection.get("selection_set"):
        selection.setdefault("scorers", evaluation.get("scorers") or ())
        selection.setdefault("drawing", evaluation.get("drawing") or {})
        selection.setdefault("margins", _section(content, ["gate"]).get("margins") or {})


def is_local(place: str) -> bool:
    """Whether ``place`` is a path on this machine, not a URI."""
    return "://" not in place


def local_path(place: str) -> str:
    """The path of a place on this machine, named by path or by ``file://``; empty for a place elsewhere."""
    path = place.removeprefix("file://")
    return path if is_local(path) else ""


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RequestError(f"{path} extends itself")
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RequestError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} has no sections; see examples/avatars/retrain.yaml")
    base = content.pop("extends", None)
    _resolve_places(content, path.parent)
    return _merge(_read_yaml((path.parent / base).resolve(), (*seen, path)), content) if base else content


def _resolve_places(content: dict[str, Any], folder: Path) -> None:
    for _, section, key in _named(content):
        if isinstance(section.get(key), str) and is_local(section[key]):
            section[key] = str((folder / section[key]).resolve())


def _fetch(training: Any, key: str) -> None:
    """Have a model that lies on the Hub on this machine, and name its folder."""
    if isinstance(training, dict) and str(training.get(key)).startswith(HUB):
        try:
            training[key] = str(local(training[key]))
        except LineageError as error:
            raise RequestError(f"training.{key}: {error}") from error


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _explain(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}"
    schema = Configuration.model_json_schema()
    known = {key for section in (schema, *schema["$defs"].values()) for key in section.get("properties", ())}
    near = get_close_matches(str(problem["loc"][-1]), known, n=1)
    return f"unknown key {where}" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
