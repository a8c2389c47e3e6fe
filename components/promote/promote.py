"""Promote: ask for the champion to be moved where the gate's verdict allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineage.embedded import CHANNEL_LIFE
from lineage.entries import StaleError
from lineage.moves import LocalMover, Mover, ServerMover
from lineage.records import RunContext
from lineage.registry import CHALLENGER, CHAMPION, Registry, RegistrySettings
from lineage.witness import WitnessWriter, open_witness


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
        said = _mover(context, store).move("promote", number)
    except StaleError as error:
        return {"alias": "", "stale": str(error)}
    return {"alias": CHAMPION, "said": said}


def _mover(context: RunContext, store: Registry) -> Mover:
    """Moves decided here where this run holds the promotion key, else by the governed server."""
    if "promotion" not in context.keys:
        return ServerMover(context.ledger, store.model_name, context.id)
    from lineage.channel.publisher import Publisher

    witness, signer = context.signer("witness"), context.signer("promotion")
    writer = WitnessWriter(open_witness(context.witness), witness) if context.witness else None
    channel = (
        Publisher(context.channel, signer, witness, CHANNEL_LIFE, Path(context.marks) / "channel")
        if context.channel
        else None
    )
    user = context.user or context.id
    return LocalMover(context.open_ledger(), signer, store, user, writer, channel, run=context.id)
