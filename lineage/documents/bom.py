"""The bill of materials of a candidate: CycloneDX 1.6, an ML-BOM (https://cyclonedx.org/capabilities/mlbom/).

The library has no classes for a model card and a data set's facts yet; those two are added to the JSON it writes, in
the words of the 1.6 schema.
"""

from __future__ import annotations

import json
from datetime import datetime
from importlib.metadata import Distribution, distributions
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from lineage.digests import digest_file, hex_of
from lineage.documents.candidate import NOT_STATED, Candidate

if TYPE_CHECKING:
    from pathlib import Path

    from cyclonedx.model import HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

MODEL, DATA, EVALUATION = "model", "training-data", "evaluation-set"


def ml_bom(candidate: Candidate) -> str:
    """The bill as JSON: the model with each of its files, what it was made from, and every installed package.

    A hash in CycloneDX is of bytes, so only files have one. What is a folder, or rows of a manifest, has its digest as
    its version.
    """
    from cyclonedx.output.json import JsonV1Dot6

    bill: dict[str, Any] = json.loads(JsonV1Dot6(_bill(candidate)).output_as_string())
    bill["metadata"]["component"]["modelCard"] = _model_card(candidate)
    for component in bill["components"]:
        if component["bom-ref"] == DATA:
            component["data"] = [_data(candidate)]
    return json.dumps(bill, indent=2, sort_keys=True) + "\n"


def _bill(candidate: Candidate) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        name=candidate.model_name,
        version=candidate.digest,
        licenses=_licences([candidate.license] if candidate.license else []),
        components=_files(candidate),
    )
    made_from = [
        Component(
            type=ComponentType.DATA,
            bom_ref=DATA,
            name=f"{candidate.model_name} training data",
            version=candidate.data_digest,
            licenses=_licences([name for name in candidate.stated("license") if name != NOT_STATED]),
        ),
        Component(
            type=ComponentType.DATA,
            bom_ref=EVALUATION,
            name=f"evaluation set {candidate.evaluation['evaluation_set']['name']}",
            version=candidate.evaluation["evaluation_set"]["digest"],
        ),
        *(
            Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=name,
                name=name.replace("_", " "),
                version=digest,
            )
            for name in ("base_model", "teacher")
            if (digest := candidate.input(name))
        ),
    ]
    packages = [_package(distribution) for distribution in _installed()]
    bill = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"urn:triptych:bom:{candidate.run}:{candidate.digest}"),
        metadata=BomMetaData(component=model, timestamp=datetime.fromisoformat(candidate.ended)),
        components=[*made_from, *packages],
    )
    bill.register_dependency(model, [*made_from, *packages])
    return bill


def _model_card(candidate: Candidate) -> dict[str, Any]:
    predicate = candidate.verdict.predicate
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-to-image",
            "modelArchitecture": candidate.architecture(),
            "datasets": [{"ref": DATA}, {"ref": EVALUATION}],
            "inputs": [{"format": "string"}],
            "outputs": [{"format": "image"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": f"{figure['measure']}, candidate less incumbent",
                    "slice": figure["name"] if figure["kind"] == "slice" else "all prompts",
                    "value": f"{figure['difference']:+.6f}",
                    "confidenceInterval": {
                        "lowerBound": f"{figure['lower']:+.6f}",
                        "upperBound": f"{figure['upper']:+.6f}",
                    },
                }
                for figure in candidate.figures
            ]
        },
        "considerations": {
            "useCases": ["Drawing portraits from captions of the kind it was trained on"],
            "technicalLimitations": [
                f"Gate: {predicate['decision']}",
                *predicate["reasons"],
                "Judged by automatic scorers on one pinned set of prompts; nothing else was measured",
            ],
        },
    }


def _data(candidate: Candidate) -> dict[str, Any]:
    facts = {column: candidate.stated(column) for column in ("license", "consent", "source")}
    return {
        "type": "dataset",
        "name": f"{candidate.model_name} training data",
        "description": f"{sum(facts['license'].values())} captioned pictures, pinned as {candidate.data_digest}",
        "contents": {
            "properties": [
                {"name": f"triptych:{column}", "value": f"{value} ({count})"}
                for column, values in facts.items()
                for value, count in values.items()
            ]
        },
    }


def _files(candidate: Candidate) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    files = sorted(path for path in candidate.weights.rglob("*") if path.is_file())
    names = [path.relative_to(candidate.weights).as_posix() for path in files]
    return [
        Component(type=ComponentType.FILE, bom_ref=f"file:{name}", name=name, hashes=_hashes(path))
        for path, name in zip(files, names, strict=True)
    ]


def _installed() -> list[Distribution]:
    """Each installed distribution once, by name."""
    return [found for _, found in sorted({_normal(d.metadata["Name"]): d for d in distributions()}.items())]


def _package(distribution: Distribution) -> Component:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    name = _normal(distribution.metadata["Name"])
    purl = PackageURL("pypi", name=name, version=distribution.version)
    metadata = distribution.metadata
    stated = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    return Component(
        name=name,
        version=distribution.version,
        purl=purl,
        bom_ref=str(purl),
        # Some packages put the whole text of their licence where its name belongs.
        licenses=_licences([stated] if stated and "\n" not in stated else []),
    )


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _licences(names: list[str]) -> list[License]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    make = LicenseFactory()
    # An expression may only stand alone.
    return [make.make_from_string(names[0])] if len(names) == 1 else [make.make_with_name(name) for name in names]


def _hashes(path: Path) -> list[HashType]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=hex_of(digest_file(path)))]
