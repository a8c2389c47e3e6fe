"""Fine-tuning on a cluster: a TrainJob, submitted once, waited for, and its candidate brought here.

The job outlives the step. Its name is the digest of run and step, so a retry attaches to the job that is there, also
where that has ended well meanwhile; one that failed is deleted and made anew. A cancelled step deletes its job.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainer_api import COMPLETE, FAILED, JobState, Taken, TrainerApi
from lineage.digests import digest_path, hex_of
from lineage.policy import differences
from training.errors import StorageError, TrainingError
from training.launch.launch import RECORD, TrainingRecord
from training.launch.node import CANDIDATE, CHECKPOINTS, CURVES, PICTURES, REQUEST, TrainingRequest, input_digests
from training.launch.processes import termination_as_exit
from training.launch.transfer import Place
from training.launch.watching import MlflowCurves, MlflowRun
from training.settings import TrainingSettings
from training.train.curves import read_points
from training.train.job import MARKS, marks_folder, marks_in, pictures_beside


def job_name(run: str) -> str:
    """The name of the TrainJob of a run's fine-tune step: the same for each retry."""
    return "triptych-" + hashlib.sha256(f"{run}/fine-tune".encode()).hexdigest()[:16]


def train_on_cluster(
    trainjob: TrainJobSettings,
    run: str,
    settings: TrainingSettings,
    features: Path,
    candidate: Path,
    curves: Path,
    mlflow: MlflowRun | None,
) -> TrainingRecord:
    """Have a TrainJob fine-tune; write the candidate, beside it its record and the weights to choose among, its loss
    curves, and beside them pictures.

    Raises:
        TrainingError: the cluster refuses or is away, the job failed, vanished or took too long, or what it left is
            not what was asked for.
        StorageError: what it left cannot be brought here now; it and the job are kept.
    """
    api, name = TrainerApi(trainjob), job_name(run)
    place = Place(trainjob.storage) / name
    with termination_as_exit():
        try:
            request = _start(api, name, place, trainjob, settings, features)
            ended = _wait(api, name, trainjob)
        except (KeyboardInterrupt, SystemExit):
            print(f"cancelled: deleting TrainJob {api.namespace}/{name}", flush=True)
            api.delete(name, wait=False)
            raise
    if ended.ended == FAILED:
        raise TrainingError(
            f"TrainJob {api.namespace}/{name} failed: {ended.reason}; run the step again to train anew, from the last "
            f"checkpoint where there is one. Last lines of its first node:\n{api.last_lines(name)}"
        )
    try:
        record = _collect(place, request, candidate, curves)
    except StorageError:
        raise  # what the job left may be good: a retry attaches to it and collects again
    except TrainingError:
        api.delete(name, wait=False)  # otherwise each retry would attach to it and end here
        raise
    log = MlflowCurves(mlflow)
    log.log({f"target_{name}": value for name, value in record.target.items()}, step=0)
    for point in read_points(curves):
        log.log(point.metrics(), point.step)
    for picture in sorted(pictures_beside(curves).glob("*.png")):
        log.picture(picture)
    log.close()
    return record.model_copy(update={"mlflow_error": log.error})


def _start(
    api: TrainerApi,
    name: str,
    place: Place,
    trainjob: TrainJobSettings,
    settings: TrainingSettings,
    features: Path,
) -> TrainingRequest:
    """Attach to the job, or submit it."""
    if settings.processes % trainjob.nodes:
        raise TrainingError(
            f"training.processes {settings.processes} cannot be spread evenly over trainjob.nodes {trainjob.nodes}; "
            "change either"
        )
    digests = input_digests(settings, features)
    shared = Place(trainjob.storage) / "features" / hex_of(digests["features"])
    request = TrainingRequest(settings=settings, features=(shared / "files").uri, digests=digests)
    job = api.find(name)
    if job is not None and (job.ended == FAILED or job.leaving):
        print(f"TrainJob {api.namespace}/{name} of an earlier attempt failed ({job.reason}): training anew", flush=True)
        api.delete(name)
        job = None
    if job is None:
        if shared.read("complete") is None:
            (shared / "files").upload(features)
            shared.write("complete", digests["features"])
        place.remove(RECORD, CANDIDATE, CURVES, PICTURES, MARKS)
        place.write(REQUEST, request.model_dump_json(indent=2))
        try:
            api.submit(name, place.uri)
            print(f"submitted TrainJob {api.namespace}/{name}", flush=True)
            return request
        except Taken:
            pass  # by another attempt at this step, or by this one when the answer was lost
    text = place.read(REQUEST)
    if text is None or TrainingRequest.model_validate_json(text) != request:
        raise TrainingError(
            f"TrainJob {api.namespace}/{name} is there, and {REQUEST} at {place.uri} asks for something else than this "
            "step; delete the job"
        )
    print(f"attached to TrainJob {api.namespace}/{name}", flush=True)
    return request


def _wait(api: TrainerApi, name: str, trainjob: TrainJobSettings) -> JobState:
    """Look at the job until it has ended."""
    while True:
        job = api.find(name)
        if job is None or job.leaving:
            raise TrainingError(
                f"TrainJob {api.namespace}/{name} was deleted while this step waited for it; run the step again to "
                "train anew"
            )
        if job.ended in (COMPLETE, FAILED):
            return job
        age = (datetime.now(UTC) - job.created).total_seconds()
        if trainjob.timeout_seconds is not None and age > trainjob.timeout_seconds:
            api.delete(name, wait=False)
            raise TrainingError(
                f"TrainJob {api.namespace}/{name} had not ended {age:.0f} s after its creation and was deleted; raise "
                "trainjob.timeout_seconds or leave it out, and look whether the job was admitted by its queue"
            )
        time.sleep(trainjob.poll_seconds)


def _collect(place: Place, request: TrainingRequest, candidate: Path, curves: Path) -> TrainingRecord:
    """Bring the candidate here and check that it is what the job says it made, from what was asked for."""
    text, points = place.read(RECORD), place.read(CURVES)
    if text is None or points is None:
        raise TrainingError(f"the job is complete and left no {RECORD} and {CURVES} at {place.uri}; train again")
    try:
        record = TrainingRecord.model_validate_json(text)
    except ValidationError as error:
        raise TrainingError(f"{RECORD} at {place.uri} is not a training record: {error}; train again") from error
    asked: dict[str, Any] = {name: request.digests[name] for name in ("features", "base model")}
    asked["settings"] = request.settings.model_dump(mode="json")
    made_of = {"features": record.features, "base model": record.base_model, "settings": record.settings}
    if other := list(differences(asked, made_of)):
        raise TrainingError(f"{RECORD} at {place.uri} is of another training: {'; '.join(other)}; train again")
    (place / CANDIDATE).download(candidate)
    found = digest_path(candidate) if candidate.is_dir() else "nothing"
    if found != record.candidate:
        raise TrainingError(
            f"the candidate at {place.uri} is {found}, and its record says {record.candidate}; train again"
        )
    marks = marks_folder(None, candidate)
    (place / MARKS).download(marks)
    if other := list(differences(record.marks, marks_in(marks, request.settings), MARKS)):
        raise TrainingError(
            f"the weights to choose among at {place.uri} are not those that its record says: {'; '.join(other)}; train "
            "again"
        )
    (place / PICTURES).download(pictures_beside(curves))
    curves.write_text(points, "utf-8")
    candidate.with_name(RECORD).write_text(text, "utf-8")
    try:
        place.remove(CHECKPOINTS)  # what they were kept for is there
    except StorageError as error:
        print(f"the candidate is here, and its checkpoints are left over: {error}", flush=True)
    return record
