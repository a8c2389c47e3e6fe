"""Croissant metadata of what a candidate was trained on."""

from __future__ import annotations

from typing import Any

from components.register.documents.candidate import Candidate
from lineage.croissant import describe_manifest


def croissant(candidate: Candidate, place: str) -> dict[str, Any]:
    """The JSON-LD of the rows that a candidate was trained on, for a reader who finds them at the path ``place``."""
    digest = candidate.data_digest
    description = (
        f"The data with digest {digest}, on which run {candidate.run} fine-tuned {candidate.model_name}: "
        f"{candidate.images()}. Rows whose split is not train were not trained on."
    )
    name = f"{candidate.model_name}-training-data"
    return describe_manifest(candidate.manifest, place, digest, name, description, candidate.ended, held_out=False)
