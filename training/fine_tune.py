"""What each training process runs: ``accelerate launch … -m training.fine_tune --job JOB``.

`training.launch` writes the job folder and starts the processes; this is its other half. Points of the loss
curves go to standard output as JSON behind `POINT`, an error goes to a file of the job folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from training.settings import TrainingSettings

if TYPE_CHECKING:
    from training.curves import CurvePoint

POINT = "@point "
JOB, RESULT = "job.json", "result.json"
TETHER = "TRIPTYCH_TRAINING_TETHER"
"""Set by the launcher: standard input is a pipe that closes when the launcher dies."""


def main() -> None:
    """Run one process of the job."""
    parser = argparse.ArgumentParser(description="one training process; start it through training.launch")
    parser.add_argument("--job", type=Path, required=True, help="folder that training.launch has written")
    folder: Path = parser.parse_args().job
    if os.environ.get(TETHER):
        threading.Thread(target=_die_with_launcher, daemon=True).start()
    try:
        _run(folder)
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        text = "".join(traceback.format_exception(error))
        failure = {"kind": type(error).__name__, "message": str(error), "traceback": text}
        (folder / f"error-{rank}.json").write_text(json.dumps(failure), "utf-8")
        print(text, file=sys.stderr, flush=True)
        # Not an orderly exit: process groups wait for the other processes while they are taken down.
        os._exit(1)


def _die_with_launcher() -> None:
    """End this process when the launcher's end of the pipe closes, whatever it died of."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def _run(folder: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from training.loop import train

    job = json.loads((folder / JOB).read_text("utf-8"))
    curves = Path(job["curves"])
    main_process = os.environ.get("RANK", "0") == "0"

    def report(point: CurvePoint) -> None:
        if main_process:
            line = point.model_dump_json()
            with curves.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            print(POINT + line, flush=True)

    settings = TrainingSettings.model_validate(job["settings"])
    result = train(settings, Path(job["features"]), Path(job["candidate"]), report)
    if result is not None:
        fields = asdict(result) | {"last": result.last.model_dump()}
        (folder / RESULT).write_text(json.dumps(fields), "utf-8")


if __name__ == "__main__":
    main()
