"""What each training process runs: ``torchrun … -m training.train.process --job JOB``.

`training.launch.launch` writes the job folder and starts the processes; this is its other half. Where the job has a
place for checkpoints, a process that is asked to stop saves and leaves (`training.train.checkpoints`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import traceback
from pathlib import Path

from training.errors import STOPPED, Stopped, TrainingError
from training.train.job import JOB, RESULT, TrainingJob

TETHER = "TRIPTYCH_TRAINING_TETHER"
"""Set by the launcher: standard input is a pipe that closes when the launcher dies."""


def main() -> None:
    """Run one process of the job."""
    parser = argparse.ArgumentParser(description="one training process; start it through training.launch.launch")
    parser.add_argument("--job", type=Path, required=True, help="folder that training.launch.launch has written")
    folder: Path = parser.parse_args().job
    if os.environ.get(TETHER):
        threading.Thread(target=_die_with_launcher, daemon=True).start()
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from training.train.loop import train

        result = train(TrainingJob.model_validate_json((folder / JOB).read_text("utf-8")))
        if result is not None:
            (folder / RESULT).write_text(result.model_dump_json(), "utf-8")
    except Stopped as stopped:
        _leave(folder, stopped, STOPPED)
    except Exception as error:
        _leave(folder, without_memory(error) or error, 1)


def _leave(folder: Path, error: BaseException, status: int) -> None:
    """Tell the launcher why this process ends, and end it, also where a full disk takes neither file nor output."""
    try:
        text = "".join(traceback.format_exception(error))
        try:
            print(text, file=sys.stderr, flush=True)
        finally:
            failure = {"kind": type(error).__name__, "message": str(error), "traceback": text}
            path = folder / f"error-{os.environ.get('RANK', '0')}.json"
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(failure), "utf-8")
            partial.replace(path)  # whole or not at all
    finally:
        # Not an orderly exit: process groups wait for the other processes while they are taken down.
        os._exit(status)


def without_memory(error: Exception) -> TrainingError | None:
    """What to say where ``error`` means that memory ran out, on the device or in the host; None for another error."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        return None
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    told = TrainingError(
        f"out of memory: {reason}. In this order: raise gradient_accumulation (the same result), set "
        "gradient_checkpointing, set zero_stage: 3, set offload: true, or lower batch_size; checkpoints are unharmed, "
        "but those of other settings are not taken up"
    )
    told.__cause__ = error
    return told


def _die_with_launcher() -> None:
    """End this process when the launcher's end of the pipe closes, whatever it died of."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nor is this an orderly exit: a library's thread that outlives the interpreter aborts the process.
    os._exit(0)
