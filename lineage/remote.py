"""Moves of the champion by a governed MLflow server, asked for over HTTP."""

from __future__ import annotations

import json
from typing import Literal

from lineage.ledger import HttpStore

MOVE_PATIENCE = 600.0
"""Seconds: the server reads and checks all weights before it moves."""


def move(url: str, action: Literal["rollback", "withdraw", "override"], model: str, version: str, reason: str) -> str:
    """Ask for a move that needs a reason; gives the server's answer in words.

    Credentials come from MLflow's own variables (``MLFLOW_TRACKING_USERNAME`` and others).

    Raises:
        LedgerError: the server refuses, with its reason, or does not answer.
    """
    asked = {"action": action, "model": model, "version": version, "reason": reason}
    return str(json.loads(HttpStore(url).ask("POST", "/moves", json.dumps(asked), MOVE_PATIENCE))["message"])


def reconcile(url: str) -> list[str]:
    """Have the server make its registry agree with the ledger; says what did not.

    Raises:
        LedgerError: the server refuses, or does not answer.
    """
    return [str(line) for line in json.loads(HttpStore(url).ask("POST", "/reconcile", "", MOVE_PATIENCE))["said"]]
