"""The candidate of this run: trained, or fetched where the plan knows it already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainjob import train_on_cluster
from lineage.registry import fetch_weights
from training.curves import draw_curves, read_points
from training.launch import RECORD, fine_tune
from training.settings import TrainingSettings
from training.watching import MlflowRun


def train_candidate(
    settings: TrainingSettings,
    trainjob: TrainJobSettings | None,
    run: str,
    features: Path,
    candidate: Path,
    curves: Path,
    training_record: Path,
    mlflow: MlflowRun | None,
) -> dict[str, Any]:
    """Fine-tune here, or on a cluster where ``trainjob`` says so.

    Writes the candidate, a page with its loss curves, and its training record. Gives the record.
    """
    points = curves.with_name(f"{curves.name}.jsonl")
    if trainjob is None:
        record = fine_tune(settings, features, candidate, points, mlflow)
    else:
        record = train_on_cluster(trainjob, run, settings, features, candidate, points, mlflow)
    curves.write_text(draw_curves(read_points(points), "Fine-tuning"), "utf-8")
    training_record.write_bytes(candidate.with_name(RECORD).read_bytes())
    return record.model_dump(mode="json")


def fetch_candidate(
    uri: str, digest: str, tracking_uri: str, candidate: Path, curves: Path, training_record: Path
) -> dict[str, Any]:
    """Fetch a known candidate instead of training it, and check that it is the one that was meant.

    Raises:
        LineageError: what lies at ``uri`` does not have ``digest``.
    """
    fetch_weights(tracking_uri, uri, digest, candidate)
    facts = {"candidate": digest, "reused": uri}
    training_record.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    curves.write_text(draw_curves([], f"Nothing was trained: the candidate is {uri}"), "utf-8")
    return facts
