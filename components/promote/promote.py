"""Promote: ask for the champion to be moved where the gate's verdict allows it."""

from __future__ import annotations

from lineage.entries import StaleError
from lineage.promotion import open_promotions, request_promotion
from lineage.records import RunContext
from lineage.registry import CHALLENGER, CHAMPION, Registry, RegistrySettings


def promote_version(context: RunContext, settings: RegistrySettings, number: str) -> dict[str, str]:
    """Set ``champion`` (mode ``auto``) or ``challenger`` (mode ``manual``) on a version with a promote verdict.

    Returns:
        ``alias`` that was set, empty where the verdict is not promote, or is ``stale``, then with the reason.

    Raises:
        LineageError: the ledger knows no such version, or the registry's weights are not those that were judged.
    """
    store = Registry(context.tracking_uri, settings.model_name)
    state = context.open_ledger().state
    registered = state.versions.get((settings.model_name, number))
    decision = state.verdicts[registered.verdict].decision if registered else ""
    if decision and decision != "promote":
        return {"alias": ""}
    if settings.mode == "manual" and registered:
        store.client.set_registered_model_alias(settings.model_name, CHALLENGER, number)
        return {"alias": CHALLENGER}
    try:
        if "promotion" in context.keys:
            open_promotions(context, store).promote(number, context.user or context.id)
        else:
            request_promotion(store, number)
    except StaleError as error:
        return {"alias": "", "stale": str(error)}
    return {"alias": CHAMPION}
