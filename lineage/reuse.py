"""What decides whether a result can be reused, by digests of content, never of places.

The **training key** names everything that decides a candidate's weights. Everything that decides a verdict is named by
the digests of candidate and incumbent and the **evaluation terms**.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineage.digests import code_digest, digest_json, digest_path

TRAINING_CODE = (
    "training.settings",
    *(f"training.{room}" for room in ("families", "teach", "encode", "train")),
    *(f"components.{step}" for step in ("snapshot_data", "validate_data", "encode_features", "fine_tune")),
)
"""The packages whose code decides a candidate's weights: not how training is launched and watched."""
JUDGING_CODE = ("components.evaluate", "components.gate", "training.families")
"""The packages whose code decides a verdict; families say how a model is asked to draw."""


def training_key(snapshot_digest: str, validation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The key of the candidate that the settings make from a snapshot, with the code installed here.

    Validation belongs to it: it says which rows of the snapshot are trained on.
    """
    settings = {"validation": by_content(validation), "training": by_content(training)}
    return digest_json({"snapshot": snapshot_digest, "code": code_digest(*TRAINING_CODE), **settings})


def evaluation_terms(evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """What decides a verdict beside the two models: evaluation set, scorers, gate settings, code."""
    return digest_json({"evaluation": by_content(evaluation), "gate": gate, "code": code_digest(*JUDGING_CODE)})


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
