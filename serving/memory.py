"""How much memory is free: measured, not configured."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

LIMIT = Path("/sys/fs/cgroup")


def free_memory(gpu: bool = True) -> int:
    """Bytes that a model may take here: of the GPU where there is one, else of the machine or the container.

    Args:
        gpu: False: of main memory, whatever else there is.
    """
    torch = sys.modules.get("torch")
    if gpu and torch is not None and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    try:
        most, used, told = ((LIMIT / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        facts = dict(line.split() for line in told.splitlines())
        cached = int(facts["inactive_file"]) + int(facts["active_file"])  # what the kernel gives back when asked
        return free if most.strip() == "max" else min(free, int(most) - int(used) + cached)
    except (OSError, ValueError, KeyError):
        return free  # no container, or one that says nothing of its limit
