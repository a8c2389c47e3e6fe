"""Making versions in the registry, which only the register step does."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from lineage.artifacts import WEIGHTS_FOLDER
from lineage.registry import EVIDENCE_FOLDER, TAG, Registry, Version

ATTEMPT = "candidate-"
"""Begins the name of the folder that holds a version's files; each attempt to register has its own."""
MODEL_FOLDER = "model"


def new_attempt() -> str:
    """A fresh name for the folder of a version's files, which nobody can know beforehand."""
    return f"{ATTEMPT}{secrets.token_hex(8)}"


def upload(
    store: Registry, mlflow_run: str, folder: Path, weights: Path, evidence: Mapping[str, Path], attempt: str
) -> str:
    """Store a candidate's files in a fresh folder of an MLflow run; gives the URI of its model folder.

    Args:
        folder: an MLflow model folder without its weights, which are stored in its `WEIGHTS_FOLDER`.
        evidence: name -> a file of that name, or a folder.
        attempt: name of the fresh folder, of `new_attempt`.
    """
    store.client.log_artifacts(mlflow_run, str(folder), f"{attempt}/{MODEL_FOLDER}")
    store.client.log_artifacts(mlflow_run, str(weights), f"{attempt}/{MODEL_FOLDER}/{WEIGHTS_FOLDER}")
    for name, path in evidence.items():
        if path.is_dir():
            store.client.log_artifacts(mlflow_run, str(path), f"{attempt}/{EVIDENCE_FOLDER}/{name}")
        else:
            store.client.log_artifact(mlflow_run, str(path), f"{attempt}/{EVIDENCE_FOLDER}")
    return f"{store.client.get_run(mlflow_run).info.artifact_uri}/{attempt}/{MODEL_FOLDER}"


def create(store: Registry, mlflow_run: str, source: str, tags: Mapping[str, str], description: str) -> Version:
    """Make a new version of the model folder at ``source``."""
    if not store.client.search_registered_models(f"name = '{store.model_name}'"):
        store.client.create_registered_model(store.model_name)
    made = store.client.create_model_version(
        store.model_name,
        source,
        run_id=mlflow_run,
        tags={f"{TAG}{name}": value for name, value in tags.items()},
        description=description,
    )
    return store.read(made, {})


def delete_leftovers(store: Registry, mlflow_run: str, known: Collection[str]) -> None:
    """Delete versions of an MLflow run that are not ``known``: of attempts that died, or strangers'."""
    for version in store.versions():
        if version.mlflow_run == mlflow_run and version.number not in known:
            store.client.delete_model_version(store.model_name, version.number)
