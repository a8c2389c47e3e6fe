"""Promote: move ``champion`` only where a verdict says so about exactly these weights and this incumbent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lineage.digests import LineageError, digest_path
from lineage.registry import CHALLENGER, CHAMPION, Registry, RegistrySettings, Version, fetch_weights
from lineage.statements import VERDICT, read_statement


def promote_version(
    store: Registry,
    settings: RegistrySettings,
    number: str,
    verdict: Path,
    verdict_digest: str,
    base_digest: str,
) -> str:
    """Set ``champion`` (mode ``auto``) or ``challenger`` (mode ``manual``) on a version with a promote verdict.

    Args:
        verdict_digest: of the verdict's folder, as the gate gave it.
        base_digest: of the base model, the incumbent where there is no champion.

    Returns:
        The alias that was set, or an empty string where the verdict is not promote.

    Raises:
        LineageError: the verdict was changed, is about other weights, or is stale: another champion came meanwhile.
    """
    if digest_path(verdict) != verdict_digest:
        raise LineageError(f"the verdict at {verdict} is not the one that the gate gave ({verdict_digest})")
    statement = read_statement(verdict / "verdict.json", VERDICT)
    if statement.predicate["decision"] != "promote":
        return ""
    version = next((v for v in store.versions() if v.number == number), None)
    if version is None:
        raise LineageError(f"version {number} of {store.model_name} is not in the registry; register it first")
    with tempfile.TemporaryDirectory() as folder:
        # By the weights themselves, not by the version's tags: anyone may edit those.
        expected = statement.subject_digest("candidate")
        fetch_weights(store.tracking_uri, version.uri, expected, Path(folder) / "weights")
    judged_against = statement.predicate["evaluation"]["incumbent"]["digest"]
    return _move(store, settings, version, judged_against, base_digest)


def _move(store: Registry, settings: RegistrySettings, version: Version, judged_against: str, base_digest: str) -> str:
    champion = store.champion()
    if champion is not None and champion.number == version.number:
        return CHAMPION
    incumbent = champion.tags["candidate"] if champion else base_digest
    if incumbent != judged_against:
        raise LineageError(
            f"the verdict is stale: it was given against {judged_against}, the champion is now {incumbent}; "
            "run again to judge the candidate against it"
        )
    alias = CHAMPION if settings.mode == "auto" else CHALLENGER
    store.tag(version, {"replaced": champion.number if champion else "base model"})
    store.set_alias(alias, version)
    return alias
