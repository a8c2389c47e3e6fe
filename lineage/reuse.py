"""What decides whether a result can be reused, by digests of content, never of places.

The **training key** names everything that decides a candidate's weights. Everything that decides a verdict is named by
the digests of candidate and incumbent and the **evaluation terms**.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lineage.digests import code_digest, digest_json, digest_path, packages_digest

TRAINING_CODE = (
    "training",
    *(f"components.{step}" for step in ("snapshot_data", "validate_data", "encode_features", "fine_tune")),
)
"""The packages whose code decides a candidate's weights."""
JUDGING_CODE = ("components.evaluate", "components.gate", "training.families")
"""The packages whose code decides a verdict; families say how a model is asked to draw."""


def training_key(snapshot_digest: str, validation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The key of the candidate that the settings make from a snapshot, with the code installed here.

    Validation belongs to it: it says which rows of the snapshot are trained on.
    """
    settings = {"validation": by_content(validation), "training": by_content(training)}
    return digest_json({"snapshot": snapshot_digest, "code": code_digest(*TRAINING_CODE), **settings})


def evaluation_terms(evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """What decides a verdict beside the two models: evaluation set, scorers with their code, gate, code, packages."""
    code = {"code": code_digest(*JUDGING_CODE, *scorers_code(evaluation)), "packages": packages_digest()}
    return digest_json({"evaluation": by_content(evaluation), "gate": gate, **code})


def scorers_code(evaluation: Mapping[str, Any]) -> set[str]:
    """The packages, ours or plugged in, that the scorers of an evaluation are in."""
    asked = {scorer["scorer"] for scorer in evaluation.get("scorers", ())}
    found = (point.module for point in entry_points(group="triptych.scorers") if point.name in asked)
    return {module.rpartition(".")[0] or module for module in found}


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
