"""Promote: ask for the champion to be moved where the gate's verdict allows it."""

from __future__ import annotations

from typing import Any

from lineage.entries import StaleError
from lineage.moves import open_mover
from lineage.records import RunContext
from lineage.registry import CHALLENGER, CHAMPION, Registry, RegistrySettings


def promote_version(context: RunContext, settings: RegistrySettings, number: str) -> dict[str, Any]:
    """Set ``champion`` (mode ``auto``) or ``challenger`` (mode ``manual``) on a version with a promote verdict.

    Returns:
        ``alias`` that was set, empty where the verdict is not promote, or is ``stale``, then with the reason; and
        what was ``said``.

    Raises:
        LineageError: the ledger knows no such version, or the registry's files are not those that were registered.
    """
    store = Registry(context.tracking_uri, settings.model_name)
    state = context.open_ledger().refresh()
    registered = state.registered(settings.model_name, number)
    decision = state.verdicts[registered.verdict].decision if registered else ""
    if decision and decision != "promote":
        return {"alias": ""}
    if settings.mode == "manual" and registered:
        store.point(CHALLENGER, number)
        return {"alias": CHALLENGER}
    try:
        said = open_mover(context, store, context.open_ledger()).move("promote", number)
    except StaleError as error:
        return {"alias": "", "stale": str(error)}
    return {"alias": CHAMPION, "said": said}
