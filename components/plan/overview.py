"""What MLflow's pages show of a run beside its curves: where it came from, and the settings in which runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from lineage.digests import hex_of
from lineage.figures import METRICS
from lineage.records import RunContext
from lineage.registry import Registry

SHOWN = (
    *("data.source", "training.base_model", "training.method", "training.lora.rank", "training.steps"),
    *("training.batch_size", "training.gradient_accumulation", "training.learning_rate", "training.ema_decay"),
    *("training.caption_dropout", "training.seed", "training.supervision.enabled", "training.supervision.target"),
    *("training.supervision.weight", "training.supervision.structure_weight"),
    *("training.replay.captions", "training.replay.weight", "training.selection.selection_set"),
    *("evaluation.evaluation_set", "evaluation.limit", "gate.margins", "gate.alpha"),
)
"""Settings that decide what comes of a run, by section. The records hold all of them."""
VIEW = "verdicts"
"""A view of MLflow's: which columns its list of runs has at the address of `page`."""
COLUMNS = ("data.source", "training.steps", "training.replay.captions")
"""Settings that the view shows, beside the decision and each axis."""
KIND = "mlflow.experimentKind"


def page(server: str, experiment_id: str) -> str:
    """The address of an experiment's runs with their verdicts, on the MLflow server at ``server``.

    MLflow 3.17 opens every experiment on traces of language models, whatever its kind, unless the address says so.
    """
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def show_run(store: Registry, mlflow_run: str, context: RunContext, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Log settings as parameters, and source, user and commit as MLflow's own tags; safe to repeat."""
    from mlflow.entities import Param, RunTag

    tags = {
        "mlflow.source.type": "JOB",
        "mlflow.source.name": context.trigger or "triptych retrain",
        "mlflow.user": context.user,
        "mlflow.source.git.commit": context.commit,
    }
    store.client.log_batch(
        mlflow_run,
        params=[Param(name, value) for name, value in parameters(sections)],
        tags=[RunTag(name, value) for name, value in tags.items() if value],
    )
    experiment = store.client.get_run(mlflow_run).info.experiment_id
    axes = sections.get("gate", {}).get("margins", {})
    columns = ["tags.`triptych.decision`", *(f"metrics.`{METRICS}{axis}/candidate`" for axis in axes)]
    view = {"selectedColumns": columns + [f"params.`{name}`" for name in COLUMNS]}
    store.client.set_experiment_tag(experiment, KIND, "custom_model_development")
    store.client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))


def parameters(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(name, value) of each setting of `SHOWN` that is set; of a table one for each entry."""
    for name in SHOWN:
        value: Any = sections
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        for inner, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            if one is not None:
                said = f"{one:g}" if isinstance(one, float) else str(one)  # KFP makes a float of every number
                # Of a place the last part: it is pinned by digest elsewhere.
                yield f"{name}.{inner}" if inner else name, PurePosixPath(said).name if "/" in said else said


def log_dataset(store: Registry, mlflow_run: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
    """Show in MLflow which data a run trains on.

    Args:
        digest: of the snapshot. MLflow shows 36 characters of one; all of it stands in the profile.
        source: URI or path of where it came from.
        profile: what is known of it, such as the number of rows.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = source if "://" in source else f"file://{source}"
    shown = Dataset(
        name=place.rstrip("/").rpartition("/")[2][:500] or "data",
        digest=hex_of(digest)[:36],
        source_type=place.partition("://")[0],
        source=json.dumps({"uri": place}),
        profile=json.dumps({"digest": digest, **profile}),
    )
    store.client.log_inputs(mlflow_run, [DatasetInput(shown, [InputTag("mlflow.data.context", "training")])])
