"""The two keys that decide what is new.

The **training key** names everything that decides a candidate's weights; the **evaluation key** everything that
decides a verdict. Both are digests of content, never of places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineage.digests import code_digest, digest_json, digest_path

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
    """The part of the evaluation key that is known before training: evaluation set, scorers, gate settings, code."""
    return digest_json({"evaluation": by_content(evaluation), "gate": gate, "code": code_digest(*JUDGING_CODE)})


def evaluation_key(candidate_digest: str, incumbent_digest: str, terms: str) -> str:
    """The key of the verdict on a candidate against an incumbent, on given `evaluation_terms`."""
    return digest_json([candidate_digest, incumbent_digest, terms])


def by_content(value: Any) -> Any:
    """A section of the configuration with every place on disk replaced by the digest of what lies there."""
    if isinstance(value, Mapping):
        return {name: by_content(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [by_content(inner) for inner in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).exists():
        return digest_path(value)
    return value
