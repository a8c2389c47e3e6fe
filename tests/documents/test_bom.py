"""The bill of materials, checked by CycloneDX's own strict validator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from components.register.documents.bom import ml_bom
from components.register.documents.candidate import Candidate
from lineage.digests import digest_file
from tests.documents import example


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return example.candidate(tmp_path_factory.mktemp("bom"))


@pytest.fixture(scope="module")
def text(subject: Candidate) -> str:
    return ml_bom(subject)


@pytest.fixture
def bill(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def components(bill: dict[str, Any], kind: str) -> dict[str, Any]:
    return {c["name"]: c for c in bill["components"] if c["type"] == kind}


def test_it_is_valid_cyclonedx_1_6(text: str, bill: dict[str, Any]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    bill["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "by magic"
    assert validator.validate_str(json.dumps(bill)) is not None, "the validator does look at the model card"


def test_the_model_comes_with_each_file_and_its_digest(bill: dict[str, Any], subject: Candidate) -> None:
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["version"] == subject.digest
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    hashes = {file["name"]: f"sha256:{file['hashes'][0]['content']}" for file in model["components"]}
    assert hashes == {
        name: digest_file(subject.weights / name) for name in ("model_index.json", "transformer/weights.safetensors")
    }


def test_what_it_was_made_from_is_named_by_digest(bill: dict[str, Any], subject: Candidate) -> None:
    models, data = components(bill, "machine-learning-model"), components(bill, "data")
    assert models["base model"]["version"] == example.BASE
    assert models["teacher"]["version"] == example.TEACHER
    assert data["portraits training data"]["version"] == subject.data_digest
    assert data["evaluation set avatars"]["version"] == example.SET


def test_only_files_have_a_hash(bill: dict[str, Any]) -> None:
    """What CycloneDX calls SHA-256 is of bytes; whoever checks it finds the same."""
    assert not any("hashes" in component for component in [bill["metadata"]["component"], *bill["components"]])


def test_the_data_states_its_rights(bill: dict[str, Any]) -> None:
    data = components(bill, "data")["portraits training data"]
    assert {lic["license"]["name"] for lic in data["licenses"]} == {"CC0-1.0", "an artist's own words: free for all"}
    stated = {(p["name"], p["value"]) for p in data["data"][0]["contents"]["properties"]}
    assert {("triptych:license", "not stated (1)"), ("triptych:consent", "not stated (1)")} <= stated


def test_every_package_installed_where_it_was_trained_is_there_once_with_its_purl(bill: dict[str, Any]) -> None:
    import mlflow

    packages = components(bill, "library")
    assert packages["mlflow"]["purl"] == f"pkg:pypi/mlflow@{mlflow.__version__}"
    assert packages["pydantic"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert packages["trained-with"]["purl"] == "pkg:pypi/trained-with@1.2"
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(references) == len(set(references))


def test_the_card_shows_the_verdict(bill: dict[str, Any]) -> None:
    card = bill["metadata"]["component"]["modelCard"]
    metric = card["quantitativeAnalysis"]["performanceMetrics"][1]
    assert metric["slice"] == "no glasses asked"
    assert metric["confidenceInterval"] == {"lowerBound": "+0.080000", "upperBound": "+0.120000"}
    assert "Gate: promote" in card["considerations"]["technicalLimitations"]


def test_the_same_candidate_gives_the_same_bill(text: str, subject: Candidate) -> None:
    assert ml_bom(subject) == text


def test_a_candidate_without_figures_has_a_valid_bill(tmp_path: Path) -> None:
    text = ml_bom(example.candidate(tmp_path, judged=example.invalid("sha256:" + "0" * 64)))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_a_model_without_a_licence_claims_none(tmp_path: Path) -> None:
    bill = json.loads(ml_bom(example.candidate(tmp_path, license=None)))
    assert "licenses" not in bill["metadata"]["component"]
