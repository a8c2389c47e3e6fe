"""What the documents are about: a candidate, and everything its run left on record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lineage.croissant import rights_of
from lineage.digests import manifest_digest
from lineage.pictures import manifest_rows
from lineage.records import StepRecord
from lineage.statements import Statement
from training.families.drawing import PRECISION


@dataclass(frozen=True)
class Candidate:
    """A judged candidate."""

    model_name: str
    run: str
    """The pipeline run that made and judged it."""
    weights: Path
    digest: str
    """Of ``weights``."""
    manifest: Path
    """``manifest.parquet``: the rows it was trained on, and those held out (``split``)."""
    records: Mapping[str, StepRecord]
    """Step -> its record."""
    verdict: Statement
    license: str | None = None
    """Under which the model may be used; None: nobody has said."""

    @cached_property
    def data_digest(self) -> str:
        """The digest of the manifest's rows."""
        return manifest_digest(manifest_rows(self.manifest))

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What decided the scores, by digest, as the verdict binds it."""
        return dict(self.verdict.predicate["evaluation"])

    @property
    def precision(self) -> str:
        """The number format of the weights that the judges drew with."""
        return str(self.evaluation.get("terms", {}).get("drawing", {}).get("precision", PRECISION))

    @cached_property
    def figures(self) -> list[dict[str, Any]]:
        """The verdict's figures: incumbent, candidate, and the interval of their difference."""
        return list(self.verdict.predicate["figures"])

    @cached_property
    def anchor(self) -> list[dict[str, Any]]:
        """The figures against the anchor; none where that is the incumbent."""
        return list(self.verdict.predicate.get("anchor", []))

    @property
    def ended(self) -> str:
        """When the last step on record ended, ISO 8601."""
        return max(record.ended or record.started for record in self.records.values())

    @property
    def installed(self) -> dict[str, dict[str, str]]:
        """What was installed where it was trained, see `components.fine_tune.installed.installed`."""
        return dict(self.records["fine-tune"].facts["installed"])

    def input(self, name: str) -> str | None:
        """The digest of what some step took under ``name``, such as ``base_model`` or ``teacher``."""
        return next((record.inputs[name] for record in self.records.values() if name in record.inputs), None)

    def architecture(self) -> str:
        """The class that loads the weights, as the bundle itself says."""
        index = self.weights / "model_index.json"
        return str(json.loads(index.read_text("utf-8"))["_class_name"]) if index.is_file() else "unknown"

    @cached_property
    def rights(self) -> dict[str, dict[str, int]]:
        """See `rights_of`, of the rows trained on."""
        return rights_of(self.manifest, held_out=False)

    def images(self) -> str:
        """How many images it was trained on, and how many were held out, in words."""
        every, trained = (sum(r["source"].values()) for r in (rights_of(self.manifest), self.rights))
        return f"{trained} captioned pictures" + (f"; {every - trained} more were held out" if every > trained else "")
