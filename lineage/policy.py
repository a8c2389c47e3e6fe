"""The policy: what a model's candidates are judged by, named by one digest that the ledger pins.

It consists of the settings of the gate and of the evaluation. Places in them (evaluation set, scorers' weights) are
replaced by the digests of what lies there, so that equal policies have equal digests on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.digests import digest_json, digest_path

if TYPE_CHECKING:
    from lineage.entries import PolicySet


def policy_digest(evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """The digest of a policy.

    Args:
        evaluation: settings of the evaluation, by content (`by_content`).
        gate: settings of the gate.
    """
    return digest_json({"evaluation": evaluation, "gate": gate})


def by_content(value: Any) -> Any:
    """A section of the configuration, without what is not set, every place on disk replaced by what lies there."""
    if isinstance(value, Mapping):
        return {name: by_content(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [by_content(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"(tree-)?sha256:[0-9a-f]{64}", value):
        return {"called": value}  # a name that looks like a digest is none
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).exists():
        return digest_path(value)
    return value


def changes(pinned: PolicySet | None, evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> list[str]:
    """In words, each setting in which a policy differs from the one that the ledger pins; nothing where none does."""
    if pinned is None:
        return ["first policy of the model"]
    if pinned.digest == policy_digest(evaluation, gate):
        return []
    now = {"gate": gate, "evaluation": evaluation}
    return list(differences({"gate": pinned.gate, "evaluation": pinned.evaluation}, now))


def differences(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """In words, each setting in which two policies differ: ``gate.margins.realism: 0.02 -> 0.05``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
    elif before != after:
        yield f"{name}: {before} -> {after}"
