"""The bill of materials of a candidate: CycloneDX 1.6, an ML-BOM (https://cyclonedx.org/capabilities/mlbom/).

The library has no classes for a model card and a data set's facts yet; those two are added to the JSON it writes, in
the words of the 1.6 schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from components.register.documents.candidate import Candidate
from lineage.croissant import NOT_STATED
from lineage.digests import digest_file, hex_of

MODEL, DATA, EVALUATION = "model", "training-data", "evaluation-set"


def ml_bom(candidate: Candidate) -> str:
    """The bill as JSON: the model with each of its files, what it was made from, and every package installed there.

    A hash in CycloneDX is of bytes, so only files have one. What is a folder, or rows of a manifest, has its digest as
    its version.
    """
    bill: dict[str, Any] = json.loads(JsonV1Dot6(_bill(candidate)).output_as_string())
    bill["metadata"]["component"]["modelCard"] = _model_card(candidate)
    next(component for component in bill["components"] if component["bom-ref"] == DATA)["data"] = [_data(candidate)]
    return json.dumps(bill, indent=2, sort_keys=True) + "\n"


def _bill(candidate: Candidate) -> Bom:
    model = _versioned(MODEL, candidate.model_name, candidate.digest, [candidate.license] if candidate.license else [])
    model.components.update(_files(candidate.weights))
    rights = [name for name in candidate.rights["license"] if name != NOT_STATED]
    pinned = candidate.evaluation["evaluation_set"]
    made_from = [
        _versioned(DATA, f"{candidate.model_name} training data", candidate.data_digest, rights),
        _versioned(EVALUATION, f"evaluation set {pinned['name']}", pinned["digest"]),
    ]
    taken = {name: candidate.input(name) for name in ("base_model", "teacher")}
    made_from += [_versioned(name, name.replace("_", " "), digest) for name, digest in taken.items() if digest]
    made_from += [_package(name, **stated) for name, stated in candidate.installed.items()]
    bill = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"urn:triptych:bom:{candidate.run}:{candidate.digest}"),
        metadata=BomMetaData(component=model, timestamp=datetime.fromisoformat(candidate.ended)),
        components=made_from,
    )
    bill.register_dependency(model, made_from)
    return bill


def _versioned(reference: str, name: str, digest: str, licences: Iterable[str] = ()) -> Component:
    """A model or a data set, whose version is its digest."""
    kind = ComponentType.DATA if reference in (DATA, EVALUATION) else ComponentType.MACHINE_LEARNING_MODEL
    return Component(type=kind, bom_ref=reference, name=name, version=digest, licenses=_licences(list(licences)))


def _files(weights: Path) -> list[Component]:
    names = sorted(path.relative_to(weights).as_posix() for path in weights.rglob("*") if path.is_file())
    hashes = {name: HashType(alg=HashAlgorithm.SHA_256, content=hex_of(digest_file(weights / name))) for name in names}
    return [
        Component(type=ComponentType.FILE, bom_ref=f"file:{name}", name=name, hashes=[found])
        for name, found in hashes.items()
    ]


def _package(name: str, version: str, license: str) -> Component:
    purl = PackageURL("pypi", name=name, version=version)
    licences = _licences([license] if license else [])
    return Component(name=name, version=version, purl=purl, bom_ref=str(purl), licenses=licences)


def _licences(names: list[str]) -> list[License]:
    make = LicenseFactory()
    # An expression may only stand alone.
    return [make.make_from_string(names[0])] if len(names) == 1 else [make.make_with_name(name) for name in names]


def _model_card(candidate: Candidate) -> dict[str, Any]:
    verdict = candidate.verdict.predicate
    measured = "Judged by automatic scorers on one pinned set of prompts; nothing else was measured"
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-to-image",
            "modelArchitecture": candidate.architecture(),
            "datasets": [{"ref": DATA}, {"ref": EVALUATION}],
            "inputs": [{"format": "string"}],
            "outputs": [{"format": "image"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(figure) for figure in candidate.figures]},
        "considerations": {
            "useCases": ["Drawing portraits from captions of the kind it was trained on"],
            "technicalLimitations": [f"Gate: {verdict['decision']}", *verdict["reasons"], measured],
        },
    }


def _metric(figure: dict[str, Any]) -> dict[str, Any]:
    lower, upper = (f"{figure[bound]:+.6f}" for bound in ("lower", "upper"))
    return {
        "type": f"{figure['measure']}, candidate less incumbent",
        "slice": figure["name"] if figure["kind"] == "slice" else "all prompts",
        "value": f"{figure['difference']:+.6f}",
        "confidenceInterval": {"lowerBound": lower, "upperBound": upper},
    }


def _data(candidate: Candidate) -> dict[str, Any]:
    pictures = sum(candidate.rights["source"].values())
    told = [
        (column, f"{value} ({count})") for column, said in candidate.rights.items() for value, count in said.items()
    ]
    return {
        "type": "dataset",
        "name": f"{candidate.model_name} training data",
        "description": f"{pictures} captioned pictures, pinned as {candidate.data_digest}",
        "contents": {"properties": [{"name": f"triptych:{column}", "value": value} for column, value in told]},
    }
