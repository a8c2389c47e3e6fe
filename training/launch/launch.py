"""Fine-tuning from outside: start the training processes, watch them, and give the candidate.

    record = fine_tune(settings, features_dir, candidate_dir, curves_path, checkpoints=folder)

The processes run under PyTorch's own launcher (``torchrun``), on one machine at an address of its loopback interface.
Whatever ends the call, none of them is left. Where there is a folder for checkpoints, a call that was cut off is taken
up by the next one with the same arguments.
"""

from __future__ import annotations

import json
import operator
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from lineage.digests import code_digest, digest_path, packages_digest
from training.encode.info import check_features, features_digest
from training.errors import STOP_FILE, ProcessLostError, Stopped, TrainingError
from training.families import family_of
from training.launch.processes import child, python_environment, termination_as_exit
from training.launch.watching import MlflowCurves, MlflowRun, show
from training.settings import TrainingSettings
from training.train.curves import CurvePoint
from training.train.deepspeed_config import deepspeed_config
from training.train.job import CODE, JOB, PICTURE, POINT, RESULT, RunIdentity, TrainingJob, TrainingResult, marks_in
from training.train.process import TETHER

RECORD = "training.json"
LINES_KEPT = 40
LAUNCHER_VARIABLES = "PET_"
"""Begin of the variables that torchrun takes its settings from."""
DRAWS = (
    "order, noise, u ~ logit-normal(0, 1), dropout and latents by NumPy's Philox, keyed by (seed, epoch, sample); "
    "sigma = shift u / (1 + (shift - 1) u)"
)


class Nodes(NamedTuple):
    """The machines that train together. Where they are several, torchrun finds them by its ``PET_`` variables."""

    machines: int = 1
    rank: int = 0
    """Of this machine; the machine of rank 0 writes the candidate."""


ALONE = Nodes()


class TrainingRecord(TrainingResult, RunIdentity):
    """What a fine-tuning run was and gave; written as ``training.json`` beside the candidate.

    Features, base model, settings, packages, code and thread count are all that decide the weights on one kind of
    machine.
    """

    candidate: str
    """Digest of the candidate's folder."""
    marks: dict[str, str] = Field(default={}, exclude_if=operator.not_)
    """File -> digest of the weights to choose among, where any are (`training.train.checkpoints`)."""
    teacher: str | None
    """Digest of the teacher's folder; None: no teacher was used."""
    settings: dict[str, Any]
    """All of them, also those that decide no weights."""
    seed: int
    draws: str
    """What chance decides, by what, and by which keys."""
    schedule: dict[str, Any]
    """The base model's scheduler, from which the time shift of the noise schedule follows."""
    steps: int
    deepspeed: dict[str, Any]
    """DeepSpeed's configuration."""
    versions: dict[str, str]
    machine: str
    target: dict[str, float]
    """How decided the supervision's target is over the corpus (`training.encode.info.FeaturesInfo.alignment`)."""
    mlflow_error: str | None
    """Why the loss curves are not whole in MLflow, if they are not."""


def fine_tune(
    settings: TrainingSettings,
    features_dir: Path,
    candidate_dir: Path,
    curves_path: Path,
    mlflow: MlflowRun | None = None,
    checkpoints: Path | None = None,
    nodes: Nodes = ALONE,
) -> TrainingRecord:
    """Fine-tune the base model on encoded features; write the candidate, its loss curves and its record.

    Args:
        settings: what to train and how.
        features_dir: a features folder made with the same encoders and teacher.
        candidate_dir: where the candidate goes, whole or not at all; must be free. ``training.json`` is
            written beside it.
        curves_path: JSON lines, one `CurvePoint` each, appended while training runs.
        mlflow: a run that takes the loss curves too.
        checkpoints: a folder of this run's own that outlives the call; None: no checkpoints.
        nodes: the machines that train, of which this is the first; each of the others has to call `join`.

    Raises:
        TrainingError: the inputs do not fit, or a training process failed.
        Stopped: this process got SIGTERM; a checkpoint was saved and the next call goes on from it.
    """
    info = check_features(settings, features_dir)
    if candidate_dir.exists() and any(candidate_dir.iterdir()):
        raise TrainingError(f"{candidate_dir} is there already; a candidate is never overwritten: name another place")
    curves_path.parent.mkdir(parents=True, exist_ok=True)
    curves_path.write_text("", "utf-8")
    began = time.perf_counter()
    job = _job(settings, features_dir, candidate_dir, curves_path, checkpoints)
    curves = MlflowCurves(mlflow)
    curves.log({f"target_{name}": value for name, value in info.alignment.items()}, step=0)
    result = _run(job, nodes, curves)
    curves.close()
    assert result is not None
    record = TrainingRecord(
        candidate=digest_path(candidate_dir),
        marks=marks_in(job.marks, settings),
        teacher=info.made_of.get("teacher"),
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        draws=DRAWS,
        schedule=family_of(settings.base_model).schedule,
        steps=settings.steps,
        deepspeed=deepspeed_config(settings),
        versions={name: version(name) for name in ("torch", "diffusers", "accelerate", "deepspeed")},
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs",
        target=info.alignment,
        mlflow_error=curves.error,
        **job.identity.model_dump(exclude={"settings"}),
        **result.model_dump() | {"seconds": result.seconds | {"all": time.perf_counter() - began}},
    )
    candidate_dir.with_name(RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    return record


def join(settings: TrainingSettings, features_dir: Path, work: Path, nodes: Nodes, checkpoints: Path | None) -> None:
    """Run this machine's processes of a training whose first machine runs `fine_tune` with the same arguments.

    Raises:
        TrainingError: a training process failed.
        Stopped: this process got SIGTERM, and a checkpoint was saved.
    """
    job = _job(settings, features_dir, work / "candidate", work / "curves.jsonl", checkpoints)
    run_processes(job, nodes, MlflowCurves(None))


def _job(
    settings: TrainingSettings, features_dir: Path, candidate_dir: Path, curves_path: Path, checkpoints: Path | None
) -> TrainingJob:
    return TrainingJob(
        settings=settings,
        features=features_dir.resolve(),
        candidate=candidate_dir.resolve(),
        curves=curves_path.resolve(),
        identity=run_identity(settings, features_dir),
        checkpoints=checkpoints.resolve() if checkpoints else None,
    )


def run_identity(settings: TrainingSettings, features_dir: Path) -> RunIdentity:
    """What a checkpoint has to be of to be taken up."""
    return RunIdentity(
        processes=settings.processes,
        settings=settings.teaching(),
        features=features_digest(features_dir),
        base_model=digest_path(settings.base_model),
        code=code_digest(*CODE),
        packages=packages_digest(),
    )


def torchrun(processes: int, nodes: Nodes = ALONE) -> list[str]:
    """The command that starts this machine's share of ``processes``; what they run follows it.

    Raises:
        TrainingError: the processes cannot be spread evenly.
    """
    if processes % nodes.machines:
        raise TrainingError(f"{processes} training processes cannot be spread evenly over {nodes.machines} nodes")
    alone = ["--standalone", "--local-addr", "127.0.0.1"] if nodes.machines == 1 else []
    each = ["--nproc-per-node", str(processes // nodes.machines)]
    return [sys.executable, "-m", "torch.distributed.run", *alone, *each, "-m"]


def launcher_environment(threads: int, nodes: Nodes = ALONE) -> dict[str, str]:
    """The environment of `torchrun`; on one machine without what would tell it of others."""
    environment = python_environment(threads)
    if nodes.machines > 1:
        return environment
    kept = {name: value for name, value in environment.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return kept | {"GLOO_SOCKET_IFNAME": "lo"}


def _run(job: TrainingJob, nodes: Nodes, curves: MlflowCurves) -> TrainingResult | None:
    """`run_processes`; again where a process of this machine was lost and a checkpoint came since the last try."""
    from training.train.checkpoints import newest

    while True:
        before = newest(job.checkpoints)
        try:
            return run_processes(job, nodes, curves)
        except ProcessLostError as error:
            if nodes.machines > 1 or newest(job.checkpoints) == before:
                raise
            shutil.rmtree(job.candidate, ignore_errors=True)
            print(f"{error}\n{newest(job.checkpoints)}; training goes on from it", flush=True)


def run_processes(job: TrainingJob, nodes: Nodes, curves: MlflowCurves) -> TrainingResult | None:
    """Start the processes and pass on what they print until they end; the first machine gives what they measured.

    Raises:
        ProcessLostError: a training process was lost.
        TrainingError: training cannot go on.
        Stopped: this process got SIGTERM, and a checkpoint was saved.
    """
    lines = deque[str](maxlen=LINES_KEPT)
    with tempfile.TemporaryDirectory(prefix="triptych-training-") as place:
        folder = Path(place)
        (folder / JOB).write_text(job.model_dump_json(), "utf-8")
        stop, result = folder / "stop", folder / RESULT
        command = [*torchrun(job.settings.processes, nodes), "training.train.process", "--job", place]
        environment = launcher_environment(job.settings.threads_per_process, nodes)
        environment |= {TETHER: "1", STOP_FILE: str(stop)}
        with termination_as_exit(stop.touch if job.checkpoints else None), child(command, environment) as process:
            for line in process.stdout or ():
                line = line.rstrip("\n")
                if line.startswith(POINT):
                    point = CurvePoint.model_validate_json(line.removeprefix(POINT))
                    show(point, job.settings)
                    curves.log(point.metrics(), point.step)
                elif line.startswith(PICTURE):
                    curves.picture(Path(line.removeprefix(PICTURE)))
                else:
                    lines.append(line)
                    print(line, flush=True)
            status = process.wait()
        if status != 0 or (nodes.rank == 0 and not result.is_file()):
            raise _failure(folder, status, lines)
        return TrainingResult.model_validate_json(result.read_text("utf-8")) if nodes.rank == 0 else None


def _failure(folder: Path, status: int, lines: deque[str]) -> TrainingError | Stopped:
    """The first process's own error where there is one, otherwise the last lines printed."""
    paths = sorted(folder.glob("error-*.json"), key=lambda p: p.stat().st_mtime)
    errors = [json.loads(path.read_text("utf-8")) for path in paths]
    kinds = {kind.__name__: kind for kind in (Stopped, TrainingError)}
    # What one process says of itself comes before what the others say of losing it.
    for error in sorted(errors, key=lambda e: e["kind"] not in kinds):
        if error["kind"] in kinds:
            return kinds[error["kind"]](error["message"])
        return ProcessLostError(f"training stopped with {error['kind']}: {error['message']}\n{error['traceback']}")
    tail = "\n".join(lines)
    hint = ""
    if re.search(r"exitcode\s*: -9\b|Signal 9\b", tail):  # torchrun's words
        hint = " (a process was killed with signal 9, as the kernel does when the host's memory is full)"
    return ProcessLostError(
        f"the training processes ended with status {status} and no candidate{hint}; last lines:\n{tail}"
    )
