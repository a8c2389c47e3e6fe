"""Leases: one run at a time has a model to itself, whatever started the runs."""

from __future__ import annotations

import time
from datetime import timedelta

from lineage.clock import now
from lineage.entries import BusyError, Leased
from lineage.records import RunContext

LOOK_AGAIN = 10.0
"""Seconds between two looks at a lease that somebody else holds."""


def take_lease(context: RunContext, model: str, hours: float, wait: bool) -> None:
    """Have ``model`` for this run until it is closed, or for ``hours``, should it never be closed.

    Args:
        wait: for the run that has it; its lease ends with it, or expires where it died.

    Raises:
        BusyError: another run has it, and this one does not wait.
    """
    ledger, signer = context.open_ledger(), context.signer("run")
    while True:
        try:
            ledger.append(Leased(model=model, run=context.id, expires=now(timedelta(hours=hours))), signer)
            return
        except BusyError as error:
            if not wait:
                raise
            print(f"waiting: {error}", flush=True)
            time.sleep(LOOK_AGAIN)
