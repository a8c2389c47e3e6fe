"""Fine-tuning from outside: start the training processes, watch them, and give the candidate.

    record = fine_tune(settings, features_dir, candidate_dir, curves_path, checkpoints=folder)

The processes run ``accelerate launch`` with DeepSpeed on a port of this machine's loopback interface. Whatever ends
the call, none of them is left. Where there is a folder for checkpoints, a call that was cut off is taken up by the
next one with the same arguments.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from lineage.digests import code_digest, digest_path, packages_digest
from training.encode.info import check_features, features_digest
from training.errors import STOP_FILE, Stopped, TrainingError
from training.families import family_of
from training.launch.processes import child, python_environment, termination_as_exit
from training.launch.topology import ALONE, Topology
from training.launch.watching import MlflowCurves, MlflowRun, Terminal
from training.settings import TrainingSettings
from training.train.checkpoints import CODE, RunIdentity
from training.train.curves import CurvePoint
from training.train.deepspeed_config import deepspeed_config
from training.train.job import JOB, PICTURE, POINT, RESULT, Job
from training.train.process import TETHER

RECORD = "training.json"
LINES_KEPT = 40
DRAWS = (
    "order, noise, u ~ logit-normal(0, 1), dropout and latents by NumPy's Philox, keyed by (seed, epoch, sample); "
    "sigma = shift u / (1 + (shift - 1) u)"
)


class TrainingRecord(BaseModel):
    """What a fine-tuning run was and gave; written as ``training.json`` beside the candidate.

    Features, base model, settings, packages, code and thread count are all that decide the weights on one kind of
    machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate: str
    """Digest of the candidate's folder."""
    base_model: str
    """Digest of the base model's folder."""
    features: str
    """`training.encode.info.features_digest`."""
    teacher: str | None
    """Digest of the teacher's folder; None: no teacher was used."""
    code: str
    """Digest of the sources that decide the weights (`training.train.checkpoints.CODE`)."""
    packages: str
    """Digest of the names and versions of everything installed."""
    settings: dict[str, Any]
    seed: int
    draws: str
    """What chance decides, by what, and by which keys."""
    schedule: dict[str, Any]
    """The base model's scheduler, from which the time shift of the noise schedule follows."""
    steps: int
    processes: int
    threads_per_process: int
    deepspeed: dict[str, Any]
    """DeepSpeed's configuration."""
    versions: dict[str, str]
    machine: str
    target: dict[str, float]
    """How decided the supervision's target is over the corpus (`training.teach.targets.AlignmentReport`)."""
    final: CurvePoint
    """Last point of the loss curves."""
    resumed_from: int
    """Optimizer steps taken over from a checkpoint of a call before this one."""
    seconds: dict[str, float]
    """Wall time of loading, training, export, and all of it with starting the processes; of this call alone."""
    peak_memory_bytes: list[int]
    """Largest resident memory of each process."""
    mlflow_error: str | None
    """Why the loss curves are not whole in MLflow, if they are not."""


def fine_tune(
    settings: TrainingSettings,
    features_dir: Path,
    candidate_dir: Path,
    curves_path: Path,
    mlflow: MlflowRun | None = None,
    checkpoints: Path | None = None,
    topology: Topology = ALONE,
    terminal: Terminal | None = None,
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
        topology: the machines that train, of which this is the first; each of the others has to call `join`.
        terminal: where points and lines are shown; None: on standard output, for people.

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
    with tempfile.TemporaryDirectory(prefix="triptych-training-") as place:
        folder = Path(place)
        _write_job(folder, job, topology)
        curves = MlflowCurves(mlflow)
        curves.constants({f"target_{name}": value for name, value in info.alignment.items()})
        _run(folder, job, curves, topology, terminal or Terminal(settings))
        curves.close()
        result = json.loads((folder / RESULT).read_text("utf-8"))
    record = TrainingRecord(
        candidate=digest_path(candidate_dir),
        base_model=job.identity.base_model,
        features=job.identity.features,
        teacher=info.made_of.get("teacher"),
        code=job.identity.code,
        packages=packages_digest(),
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        draws=DRAWS,
        schedule=family_of(settings.base_model).schedule,
        steps=settings.steps,
        processes=settings.processes,
        threads_per_process=result["threads"],
        deepspeed=deepspeed_config(settings),
        versions={name: version(name) for name in ("torch", "diffusers", "accelerate", "deepspeed")},
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, {result['device']}",
        target=info.alignment,
        final=result["last"],
        resumed_from=result["resumed_from"],
        seconds=result["seconds"] | {"all": time.perf_counter() - began},
        peak_memory_bytes=result["peak_memory_bytes"],
        mlflow_error=curves.error,
    )
    candidate_dir.with_name(RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    return record


def join(
    settings: TrainingSettings, features_dir: Path, work: Path, topology: Topology, checkpoints: Path | None
) -> None:
    """Run this machine's processes of a training whose first machine runs `fine_tune` with the same arguments.

    Raises:
        TrainingError: a training process failed.
        Stopped: this process got SIGTERM, and a checkpoint was saved.
    """
    job = _job(settings, features_dir, work / "candidate", work / "curves.jsonl", checkpoints)
    with tempfile.TemporaryDirectory(prefix="triptych-training-") as place:
        _write_job(Path(place), job, topology)
        _run(Path(place), job, MlflowCurves(None), topology, Terminal(settings))


def _job(
    settings: TrainingSettings, features_dir: Path, candidate_dir: Path, curves_path: Path, checkpoints: Path | None
) -> Job:
    return Job(
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
        settings=settings.deciding(),
        features=features_digest(features_dir),
        base_model=digest_path(settings.base_model),
        code=code_digest(*CODE),
        packages=packages_digest(),
    )


def _write_job(folder: Path, job: Job, topology: Topology = ALONE) -> None:
    """The files that the processes read: the job, and the configurations of accelerate and DeepSpeed."""
    (folder / JOB).write_text(job.model_dump_json(), "utf-8")
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed_config(job.settings)), "utf-8")
    accelerate = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(folder / "deepspeed.json"),
            "zero3_init_flag": False,
            "deepspeed_multinode_launcher": "standard",
        },
        **topology.accelerate(job.settings.processes),
        "main_training_function": "main",
        # `use_cpu: true` would turn DeepSpeed off without a word.
        "use_cpu": False,
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(accelerate), "utf-8")


def _run(folder: Path, job: Job, curves: MlflowCurves, topology: Topology, terminal: Terminal) -> None:
    """Start the processes and watch them to their end."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    command += ["-m", "training.train.process", "--job", str(folder)]
    stop = folder / "stop"
    told = {TETHER: "1", STOP_FILE: str(stop)}
    environment = topology.environment(python_environment(job.settings.threads_per_process) | told)
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    with termination_as_exit(stop.touch if job.checkpoints else None), child(command, environment) as process:
        _watch(process, terminal, curves, lines)
        status = process.wait()
    if status != 0 or (topology.rank == 0 and not (folder / RESULT).is_file()):
        raise _failure(folder, status, lines)


def _watch(process: subprocess.Popen[str], terminal: Terminal, curves: MlflowCurves, lines: deque[str]) -> None:
    """Pass on what the processes print until they end."""
    assert process.stdout is not None
    for line in process.stdout:
        line = line.rstrip("\n")
        if line.startswith(POINT):
            point = CurvePoint.model_validate_json(line.removeprefix(POINT))
            terminal.point(point)
            curves.point(point)
        elif line.startswith(PICTURE):
            curves.picture(Path(line.removeprefix(PICTURE)))
        else:
            lines.append(line)
            terminal.line(line)


def _failure(folder: Path, status: int, lines: deque[str]) -> TrainingError | Stopped:
    """The first process's own error where there is one, otherwise the last lines printed."""
    paths = sorted(folder.glob("error-*.json"), key=lambda p: p.stat().st_mtime)
    errors = [json.loads(path.read_text("utf-8")) for path in paths]
    # What one process says of itself comes before what the others say of losing it.
    for error in sorted(errors, key=lambda e: e["kind"] not in (Stopped.__name__, TrainingError.__name__)):
        if error["kind"] == Stopped.__name__:
            return Stopped(error["message"])
        if error["kind"] == TrainingError.__name__:
            return TrainingError(error["message"])
        return TrainingError(f"training stopped with {error['kind']}: {error['message']}\n{error['traceback']}")
    tail = "\n".join(lines)
    hint = ""
    if re.search(r"exitcode\s*: -9\b|Signal 9\b", tail):  # torchrun's words
        hint = " (a process was killed with signal 9, as the kernel does when the host's memory is full)"
    return TrainingError(
        f"the training processes ended with status {status} and no candidate{hint}; last lines:\n{tail}"
    )
