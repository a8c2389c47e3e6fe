"""One thread for torch: two spinning processes on one machine slow each other down."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
