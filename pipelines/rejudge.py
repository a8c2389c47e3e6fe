"""Decide again from stored scores: ``triptych gate SCORES``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from securesystemslib.dsse import Envelope

from components.gate.scores import read_scores
from components.gate.settings import GateSettings
from components.gate.verdict import Ruling, decide
from lineage.digests import LineageError
from lineage.scores import EVALUATION_FILE, stated
from lineage.statements import VERDICT, VERDICT_FILE, Statement


def rejudge(place: Path, settings: GateSettings | None) -> tuple[Ruling, Path | None, list[str]]:
    """Decide again.

    Args:
        place: the scores artifact, or a version's evidence, which holds it as ``scores``.
        settings: None: those of the stored verdict.

    Returns:
        What the scores say now, the file of the stored verdict, and in what that one says something else.

    Raises:
        LineageError: the scores cannot be read, or there are neither settings nor a stored verdict.
    """
    folder = place if (place / EVALUATION_FILE).exists() else place / "scores"
    scores, facts = read_scores(folder)
    path, predicate = _stored_verdict(folder)
    if settings is None and path is None:
        raise LineageError(f"no verdict lies beside {folder}; say by --config on which settings to decide")
    try:
        rules = settings or GateSettings.model_validate(predicate["gate"])
    except (KeyError, ValidationError) as error:
        raise LineageError(f"the settings in {path} cannot be used: {error}; name others by --config") from error
    ruling = decide(scores, rules, int(predicate.get("decisions", 1)))
    now = {"gate": rules.model_dump(mode="json"), "evaluation": stated(facts), **ruling.model_dump(mode="json")}
    # Through JSON, which has one kind of number and of list. What the verdict does not say at all is not compared.
    differs = [name for name, value in json.loads(json.dumps(now)).items() if predicate.get(name, value) != value]
    return ruling, path, differs


def _stored_verdict(scores: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The verdict beside the scores, as evidence and the pipeline's folders hold it. Its signature is not checked."""
    places = [scores / VERDICT_FILE, scores.parent / "verdict" / VERDICT_FILE]
    places += sorted(scores.parent.parent.glob(f"gate*/verdict/{VERDICT_FILE}"))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None, {}
    try:
        statement = Statement.model_validate_json(Envelope.from_dict(json.loads(path.read_bytes())).payload)
    except (ValueError, KeyError, TypeError) as error:
        raise LineageError(f"{path} is not a verdict: {error}") from error
    if statement.predicateType != VERDICT:
        raise LineageError(f"{path} is a {statement.predicateType}, expected {VERDICT}")
    return path, statement.predicate
