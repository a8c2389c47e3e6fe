"""The candidate of this run: trained, or fetched where the plan knows it already."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainjob import train_on_cluster
from lineage.artifacts import fetch_weights
from lineage.digests import digest_json, digest_path, hex_of
from training.encode.info import check_features
from training.encode.pictures import corpus_digest, training_rows
from training.launch.launch import RECORD, fine_tune, run_identity
from training.launch.watching import MlflowRun
from training.settings import TrainingSettings
from training.train.curves import draw_curves, read_points
from training.train.job import marks_folder

ABANDONED = 14 * 24 * 3600
"""Seconds after which checkpoints that no run has taken up are removed."""


def train_candidate(
    settings: TrainingSettings,
    trainjob: TrainJobSettings | None,
    run: str,
    validated: Path,
    features: Path,
    candidate: Path,
    curves: Path,
    training_record: Path,
    mlflow: MlflowRun | None,
    state: str,
) -> dict[str, Any]:
    """Fine-tune here, or on a cluster where ``trainjob`` says so.

    Writes the candidate, a page with its loss curves, and its training record. Gives the record. Where the settings
    name a selection set, the candidate is what `components.fine_tune.selection` chooses, and the record tells of it.

    Args:
        run: the run's id.
        validated: the artifact whose pictures ``features`` have to be of.
        state: a folder that outlives this step, where the same training that was cut off is taken up; empty: none.
            A job on a cluster keeps its checkpoints with itself.

    Raises:
        TrainingError: the features are of another snapshot or other settings, or training failed.
        EvaluationError: weights are to be chosen on a selection set, and it or a scorer cannot be used.
    """
    check_features(settings, features, corpus_digest(training_rows(validated)))
    trained = candidate
    if settings.marked:
        from components.fine_tune.selection import Selection, check_selection

        check_selection(settings)
        trained = candidate.with_name("trained") / candidate.name
    points = curves.with_name(f"{curves.name}.jsonl")
    checkpoints = None
    if trainjob is not None:
        record = train_on_cluster(trainjob, run, settings, features, trained, points, mlflow)
    else:
        checkpoints = Path(state) / "fine-tune" / _key(settings, features) if state else None
        if checkpoints:
            remove_abandoned(checkpoints.parent, checkpoints.name)
        record = fine_tune(settings, features, trained, points, mlflow, checkpoints)
    curves.write_text(draw_curves(read_points(points), "Fine-tuning"), "utf-8")
    training_record.write_bytes(trained.with_name(RECORD).read_bytes())
    facts = record.model_dump(mode="json")
    if settings.marked:
        facts["selection"] = Selection(settings).select(marks_folder(checkpoints, trained), candidate)
        facts["candidate"] = digest_path(candidate)
        training_record.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        shutil.rmtree(trained.parent)
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)  # what they were kept for is there
    return facts


def remove_abandoned(folder: Path, own: str) -> None:
    """Remove checkpoints of runs that nobody took up again: those in ``folder`` but ``own`` whose last is older than
    `ABANDONED`."""
    for run in folder.glob("*") if folder.is_dir() else ():
        newest = max((path.stat().st_mtime for path in (run, *run.iterdir())), default=0.0)
        if run.name != own and time.time() - newest > ABANDONED:
            print(f"removing the checkpoints at {run}: no run has taken them up for two weeks", flush=True)
            shutil.rmtree(run)


def _key(settings: TrainingSettings, features: Path) -> str:
    """A folder name for all attempts at the same training, and for no other."""
    return hex_of(digest_json(run_identity(settings, features).model_dump()))[:16]


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
