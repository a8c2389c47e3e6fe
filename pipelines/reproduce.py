"""Train a version again from its records, and see whether the same weights come out."""

import secrets
from pathlib import Path
from typing import Any

from kfp import dsl
from rich.console import Console

from components.encode_features.component import encode_features
from components.fine_tune.component import fine_tune
from components.snapshot_data.component import snapshot_data
from components.validate_data.component import validate_data
from lineage.digests import LineageError, code_digest, packages_digest
from lineage.records import PRODUCT, StepRecord, read_records
from lineage.registry import CHAMPION
from lineage.state import State
from pipelines.narration import Narration
from pipelines.processes import processes
from pipelines.workspace import workspace

STEPS = ("snapshot-data", "validate-data", "encode-features", "fine-tune")


@dsl.pipeline(name="reproduction")
def reproduction(run: dict, data: dict, validation: dict, training: dict) -> None:
    """The part of `retraining` that decides the weights."""
    this = {"run": run, "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    snapshot = snapshot_data(**this, data=data).outputs["snapshot"]
    validated = validate_data(**this, validation=validation, snapshot=snapshot).outputs["validated"]
    features = encode_features(**this, training=training, validated=validated).outputs["features"]
    here = {"trainjob": {}, "mlflow_run": "", "reuse_uri": "", "reuse_digest": ""}  # also where a cluster trained it
    fine_tune(**this, training=training, **here, validated=validated, features=features)


def training_records(state: State, records: str, model: str, version: str) -> dict[str, StepRecord]:
    """The records of the run that trained a version, checked against the ledger.

    Raises:
        LineageError: the version is unknown, its records are gone or were changed.
    """
    champion = state.champion(model)
    registered = state.registered(model, champion.version if champion and version == CHAMPION else version)
    if registered is None:
        raise LineageError(f"version {version} of {model} is not in the ledger")
    first = next(known for known in state.versions[model].values() if known.candidate == registered.candidate)
    found, named = read_records(records, first.run), state.records.get(first.run, {})
    for step in STEPS:
        if step not in found:
            raise LineageError(f"run {first.run} left no record of {step} in {records}; version {version} needs it")
        if named.get(step) != found[step].digest():
            raise LineageError(f"the record of {step} in run {first.run} is not the one that the ledger names")
    if found["fine-tune"].outputs["candidate"] != registered.candidate:
        raise LineageError(f"run {first.run} did not give the weights of version {version}")
    return found


def reproduce(records: dict[str, StepRecord], root: Path, console: Console) -> tuple[str, list[str]]:
    """Train again as ``records`` say, in the work folder ``root``; nothing is registered.

    Returns:
        The digest of the weights, empty where there are none; and what is not as it was then: code, packages, snapshot.

    Raises:
        RequestError: the work folder cannot be used.
        LineageError: a step failed.
    """
    then = records["fine-tune"]
    differs = [] if then.code == code_digest(*PRODUCT) else ["code"]
    differs += [] if then.packages == packages_digest() else ["installed packages"]
    run = f"reproduction-{secrets.token_hex(4)}"
    sections: dict[str, Any] = {
        "data": records["snapshot-data"].parameters,
        "validation": records["validate-data"].parameters,
        "training": then.parameters,
    }
    with workspace(root, "processes") as place:
        place.lineage.open()
        context = place.lineage.context(run, str(place.records), place.database)
        with Narration(console, place.log(run)), processes(run, place.pipeline_root):
            try:
                reproduction(run=context.model_dump(exclude={"id"}), **sections)
            except RuntimeError as error:
                raise LineageError(f"training again failed: {error}; the whole output: {place.log(run)}") from error
        made = read_records(str(place.records), run)
    found = {step: record.outputs for step, record in made.items() if record.status == "complete"}
    for step, name in (("snapshot-data", "snapshot"), ("encode-features", "features")):
        if found.get(step, {}).get(name) != records[step].outputs[name]:
            differs.append(name)
    return found.get("fine-tune", {}).get("candidate", ""), differs
