"""The commit of the code that runs, for the records."""

from __future__ import annotations

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def checkout_commit() -> str:
    """The commit of this checkout, with ``-dirty`` where files differ from it; empty outside of a checkout."""
    try:
        commit, changes = (
            subprocess.check_output(["git", *asked], cwd=CHECKOUT, text=True, stderr=subprocess.DEVNULL).strip()
            for asked in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if changes else commit
