"""SIGTERM as a request: finish the step, save, and leave; all processes after the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class StopRequest:
    """Whether any process of the job has been asked to stop."""

    def __init__(self, accelerator: Any) -> None:
        self._asked = False
        # On the CPU, whatever the weights are on: the answer costs no wait for a device.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether to stop now: the same answer for all processes, which all must ask."""
        if self._group is None:
            return self._asked
        asked = torch.tensor(int(self._asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)
