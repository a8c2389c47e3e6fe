"""Points at which a process can be told to kill itself, for tests of what a crash leaves."""

from __future__ import annotations

import os
import signal

FAULT_VARIABLE = "TRIPTYCH_FAULT"
"""Names the boundary at which the process kills itself."""


def boundary(name: str) -> None:
    """A point between two steps that cannot be made at once."""
    if os.environ.get(FAULT_VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
