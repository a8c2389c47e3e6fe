"""Fine-tuning from outside: start the training processes, watch them, and give the candidate.

    record = fine_tune(settings, features_dir, candidate_dir, curves_path)

The processes run ``accelerate launch`` with DeepSpeed ZeRO-2 on a port of this machine's loopback interface.
Whatever ends the call, none of them is left.
"""

from __future__ import annotations

import json
import os
import platform
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

from lineage.digests import digest_path
from training.curves import CurvePoint
from training.errors import TrainingError
from training.features_info import check_features
from training.fine_tune import JOB, POINT, RESULT, TETHER
from training.processes import child, python_environment, termination_as_exit
from training.settings import TrainingSettings
from training.topology import ALONE, Topology
from training.watching import MlflowCurves, MlflowRun, Terminal

RECORD = "training.json"
LINES_KEPT = 40


class TrainingRecord(BaseModel):
    """What a fine-tuning run was and gave; written as ``training.json`` beside the candidate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate: str
    """Digest of the candidate's folder."""
    base_model: str
    """Digest of the base model's folder."""
    features: str
    """Digest of the features folder."""
    settings: dict[str, Any]
    seed: int
    steps: int
    processes: int
    threads_per_process: int
    versions: dict[str, str]
    machine: str
    final: CurvePoint
    """Last point of the loss curves."""
    seconds: dict[str, float]
    """Wall time of loading, training, export, and all of it with starting the processes."""
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
        topology: the machines that train, of which this is the first; each of the others has to call `join`.
        terminal: where points and lines are shown; None: on standard output, for people.

    Raises:
        TrainingError: the inputs do not fit, or a training process failed.
    """
    check_features(settings, features_dir)
    if candidate_dir.exists() and any(candidate_dir.iterdir()):
        raise TrainingError(f"{candidate_dir} is there already; a candidate is never overwritten: name another place")
    curves_path.parent.mkdir(parents=True, exist_ok=True)
    curves_path.write_text("", "utf-8")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="triptych-training-") as job:
        folder = Path(job)
        _write_job(folder, settings, features_dir, candidate_dir, curves_path, topology)
        curves = MlflowCurves(mlflow)
        _run(folder, settings, curves, topology, terminal or Terminal(settings))
        result = json.loads((folder / RESULT).read_text("utf-8"))
    record = TrainingRecord(
        candidate=digest_path(candidate_dir),
        base_model=digest_path(settings.base_model),
        features=digest_path(features_dir),
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        steps=settings.steps,
        processes=settings.processes,
        threads_per_process=result["threads"],
        versions={name: version(name) for name in ("torch", "diffusers", "accelerate", "deepspeed")},
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs",
        final=result["last"],
        seconds=result["seconds"] | {"all": time.perf_counter() - began},
        peak_memory_bytes=result["peak_memory_bytes"],
        mlflow_error=curves.error,
    )
    candidate_dir.with_name(RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    return record


def join(
    settings: TrainingSettings, features_dir: Path, work: Path, topology: Topology, checkpoints: Path | None = None
) -> None:
    """Run this machine's processes of a training whose first machine runs `fine_tune` with the same arguments.

    Raises:
        TrainingError: a training process failed.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-training-") as job:
        _write_job(Path(job), settings, features_dir, work / "candidate", work / "curves.jsonl", topology)
        _run(Path(job), settings, MlflowCurves(None), topology, Terminal(settings))


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """DeepSpeed's own configuration: ZeRO-2, the optimizer is ours."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.batch_size // settings.processes,
        "train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_gradient_norm,
        "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 50_000_000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if settings.precision != "fp32":
        config[settings.precision] = {"enabled": True}
    return config


def _write_job(
    folder: Path,
    settings: TrainingSettings,
    features_dir: Path,
    candidate_dir: Path,
    curves_path: Path,
    topology: Topology,
) -> None:
    """The files that the processes read: the job, and the configurations of accelerate and DeepSpeed."""
    job = {
        "settings": settings.model_dump(mode="json"),
        "features": str(features_dir.resolve()),
        "candidate": str(candidate_dir.resolve()),
        "curves": str(curves_path.resolve()),
    }
    (folder / JOB).write_text(json.dumps(job), "utf-8")
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed_config(settings)), "utf-8")
    accelerate = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(folder / "deepspeed.json"),
            "zero3_init_flag": False,
            "deepspeed_multinode_launcher": "standard",
        },
        **topology.accelerate(settings.processes),
        "main_training_function": "main",
        # `use_cpu: true` would turn DeepSpeed off without a word.
        "use_cpu": False,
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(accelerate), "utf-8")


def _run(
    folder: Path, settings: TrainingSettings, curves: MlflowCurves, topology: Topology, terminal: Terminal
) -> None:
    """Start the processes and watch them to their end."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    command += ["-m", "training.fine_tune", "--job", str(folder)]
    environment = topology.environment(python_environment(settings.threads_per_process) | {TETHER: "1"})
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    with termination_as_exit(), child(command, environment) as process:
        _watch(process, terminal, curves, lines)
        status = process.wait()
    if status != 0 or (topology.rank == 0 and not (folder / RESULT).is_file()):
        raise TrainingError(_failure(folder, status, lines))


def _watch(process: subprocess.Popen[str], terminal: Terminal, curves: MlflowCurves, lines: deque[str]) -> None:
    """Pass on what the processes print until they end."""
    assert process.stdout is not None
    for line in process.stdout:
        line = line.rstrip("\n")
        if line.startswith(POINT):
            point = CurvePoint.model_validate_json(line.removeprefix(POINT))
            terminal.point(point)
            curves.point(point)
        else:
            lines.append(line)
            terminal.line(line)


def _failure(folder: Path, status: int, lines: deque[str]) -> str:
    """The first process's own error where there is one, otherwise the last lines printed."""
    for path in sorted(folder.glob("error-*.json"), key=lambda p: p.stat().st_mtime):
        error = json.loads(path.read_text("utf-8"))
        if error["kind"] == TrainingError.__name__:
            return str(error["message"])
        return f"training stopped with {error['kind']}: {error['message']}\n{error['traceback']}"
    tail = "\n".join(lines)
    return f"the training processes ended with status {status} and no candidate; their last lines:\n{tail}"
