"""Training processes forked from one that has imported everything: a run starts at once instead of in ten seconds.

`python -m tests.training.forked SPECS` is the parent. Each process runs `training.train.process.main` as under
``torchrun``, whose environment it is given. `run_all` is called by the tests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.launch.launch import run_identity
from training.launch.processes import python_environment
from training.settings import TrainingSettings
from training.train.job import JOB, RESULT, TrainingJob


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Run:
    """One training run, and what may happen to it."""

    settings: TrainingSettings
    features: Path
    place: Path
    """A folder of its own: job, curves, candidate."""
    checkpoints: Path | None = None
    kill_after: int = -1
    """All processes get SIGKILL between this step and the next; -1: none does."""
    file_limit: int = -1
    """Bytes that a file may have at most, from the second checkpoint on: what a full disk looks like."""
    spoilt: bool = False
    """Every gradient is infinite or not a number, while losses stay finite."""

    @property
    def curves(self) -> Path:
        return self.place / "curves.jsonl"

    @property
    def candidate(self) -> Path:
        return self.place / "candidate"

    def result(self) -> dict[str, Any]:
        """What the main process left."""
        read: dict[str, Any] = json.loads((self.place / RESULT).read_text())
        return read

    def error(self) -> str:
        """The message of the first process that ended with an error."""
        errors = sorted(self.place.glob("error-*.json"), key=lambda p: p.stat().st_mtime)
        return str(json.loads(errors[0].read_text())["message"])


def run_all(*runs: Run) -> list[list[int]]:
    """Run one after another; gives the wait statuses of the processes of each."""
    specs = []
    for run in runs:
        run.place.mkdir(parents=True, exist_ok=True)
        for left in run.place.glob("error-*.json"):
            left.unlink()
        run.curves.write_text("")
        job = TrainingJob(
            settings=run.settings,
            features=run.features,
            candidate=run.candidate,
            curves=run.curves,
            identity=run_identity(run.settings, run.features),
            checkpoints=run.checkpoints,
        )
        (run.place / JOB).write_text(job.model_dump_json())
        specs.append([str(run.place), run.settings.processes, run.kill_after, run.file_limit, run.spoilt])
    command = [sys.executable, "-m", "tests.training.forked", json.dumps(specs)]
    environment = python_environment(1) | {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout, done.stderr, sep="\n")
    return next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("[["))


def _child(place: str, rank: int, world: int, port: int, kill_after: int, file_limit: int, spoilt: bool) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import resource

    import torch
    from torch import Tensor

    from training.teach.supervision import Phase
    from training.train import checkpoints, process
    from training.train.checkpoints import Saving
    from training.train.model import Batch, Losses, Replayed, SupervisedTransformer

    after, finish, forward = Saving.after, checkpoints.finish, SupervisedTransformer.forward

    def killed(self: Saving, done: int) -> None:
        after(self, done)
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def limited(*arguments: Any) -> Path:
        path = finish(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        return path

    def spoil(self: SupervisedTransformer, batch: Batch | Replayed, phase: Phase) -> Losses | Tensor:
        given = forward(self, batch, phase)
        if isinstance(given, Losses):
            given.loss.register_hook(lambda gradient: gradient * torch.inf)
        return given

    if spoilt:
        SupervisedTransformer.forward = spoil  # type: ignore[method-assign]
    Saving.after = killed  # type: ignore[method-assign]
    if file_limit >= 0:
        checkpoints.finish = limited
    sys.argv = ["training.train.process", "--job", place]
    process.main()
    sys.stdout.flush()
    os._exit(torch.distributed.is_initialized())  # a process group that is left open counts as a failure


def main() -> None:
    """Fork the processes of each run in turn."""
    import deepspeed.runtime.zero.stage3  # noqa: F401
    import diffusers.models.transformers.transformer_sd3  # noqa: F401
    from accelerate.utils.deepspeed import DeepSpeedEngineWrapper  # noqa: F401

    import training.families.sd3
    import training.train.export
    import training.train.loop  # noqa: F401

    ended = []
    for place, world, kill_after, file_limit, spoilt in json.loads(sys.argv[1]):
        port, processes = free_port(), []
        for rank in range(world):
            pid = os.fork()
            if not pid:
                _child(place, rank, world, port, kill_after, file_limit, spoilt)
            processes.append(pid)
        statuses = []
        for left in range(world):
            pid, status = os.wait()
            processes.remove(pid)
            statuses.append(os.waitstatus_to_exitcode(status))
            if statuses[-1] and left == 0:  # as torchrun does
                for other in processes:
                    os.kill(other, signal.SIGKILL)
        ended.append(statuses)
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
