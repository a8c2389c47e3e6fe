"""A request to end: finish the step, save, and leave; all processes after the same step.

The launcher asks by a file, which is found by processes that were only starting then; who sends SIGTERM to a process
itself is heard too.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from training.errors import STOP_FILE


class StopRequest:
    """Whether any process of the job has been asked to stop."""

    def __init__(self, accelerator: Any) -> None:
        self._asked = False
        self._file = Path(os.environ[STOP_FILE]) if STOP_FILE in os.environ else None
        # On the CPU, whatever the weights are on: the answer costs no wait for a device.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether to stop now: the same answer for all processes, which all must ask."""
        mine = self._asked or (self._file is not None and self._file.exists())
        if self._group is None:
            return mine
        asked = torch.tensor(int(mine))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)
