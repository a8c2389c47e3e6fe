"""What decides whether a result can be reused, by digests of content, never of places.

The **training key** names everything that decides a candidate's weights. Everything that decides a verdict is named by
the digests of candidate and incumbent and the **evaluation terms**.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lineage.digests import code_digest, digest_file, digest_json, packages_digest
from lineage.policy import by_content

TRAINING_CODE = (
    "training.settings",
    *(f"training.{room}" for room in ("families", "teach", "encode", "train")),
    *(f"components.{step}" for step in ("snapshot_data", "validate_data", "encode_features", "fine_tune")),
)
"""The packages whose code decides a candidate's weights: not how training is launched and watched."""
CHOOSING_CODE = "components.evaluate"
"""Decides the weights as well, with the scorers', where they are chosen on a selection set."""
JUDGING_CODE = ("components.evaluate", "components.gate", "training.families")
"""The packages whose code decides a verdict; families say how a model is asked to draw."""
PACKAGES = "TRIPTYCH_PACKAGES"
"""Environment variable with the file that names all packages of both images: the image that plans has not all that the
one that judges has."""


def training_key(snapshot_digest: str, validation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The key of the candidate that the settings make from a snapshot, with the code installed here.

    Validation belongs to it: it says which rows of the snapshot are trained on.
    """
    settings = {"validation": by_content(validation), "training": by_content(training)}
    selection = training.get("selection")  # only there where weights are chosen on a selection set
    choosing = {CHOOSING_CODE, *scorers_code(selection)} if selection else set()
    return digest_json({"snapshot": snapshot_digest, "code": code_digest(*TRAINING_CODE, *choosing), **settings})


def evaluation_terms(evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """What decides a verdict beside the two models: evaluation set, scorers with their code, gate, code, packages."""
    named = os.environ.get(PACKAGES)
    packages = digest_file(Path(named)) if named else packages_digest()
    code = {"code": code_digest(*JUDGING_CODE, *scorers_code(evaluation)), "packages": packages}
    return digest_json({"evaluation": by_content(evaluation), "gate": gate, **code})


def scorers_code(evaluation: Mapping[str, Any]) -> set[str]:
    """The packages, ours or plugged in, that the scorers of an evaluation or a selection are in."""
    asked = {scorer["scorer"] for scorer in evaluation.get("scorers", ())}
    found = (point.module for point in entry_points(group="triptych.scorers") if point.name in asked)
    return {module.rpartition(".")[0] or module for module in found}
