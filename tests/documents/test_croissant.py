"""Croissant metadata, read and checked by mlcroissant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlcroissant as mlc
import pytest

from components.register.register import croissant
from lineage.digests import digest_file
from tests.documents import example


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The evidence as it is stored: ``croissant.json`` beside ``validated/manifest.parquet``."""
    subject = example.candidate(tmp_path / "made")
    described = croissant(subject, "validated/manifest.parquet")
    shutil.copytree(subject.manifest.parent, tmp_path / "validated")
    (tmp_path / "croissant.json").write_text(json.dumps(described))
    return tmp_path / "croissant.json"


def test_it_is_valid_and_says_what_the_data_is(written: Path) -> None:
    dataset = mlc.Dataset(jsonld=str(written))
    assert not dataset.metadata.issues.errors
    assert not dataset.metadata.issues.warnings
    assert "retraining-1" in str(dataset.metadata.description)
    assert set(json.loads(written.read_text())["license"]) == {
        "not stated",
        "CC0-1.0",
        "an artist's own words: free for all",
    }


def test_rights_are_those_of_the_pictures_trained_on(tmp_path: Path) -> None:
    subject = example.candidate(tmp_path)
    example.hold_out(subject.manifest, 1)
    described = croissant(subject, "validated/manifest.parquet")
    assert "2 captioned pictures; 1 more were held out" in described["description"]
    assert described["license"] == ["not stated", "an artist's own words: free for all"]


def test_its_records_are_the_rows(written: Path) -> None:
    rows = list(mlc.Dataset(jsonld=str(written)).records("rows"))
    assert len(rows) == 3
    assert rows[2]["rows/file_name"] == b"sub/2.png"
    assert rows[2]["rows/text"].decode() == "a portrait, “2”, glasses"
    assert rows[2]["rows/bytes"] == 12


def test_it_names_the_manifest_beside_it_by_digest(written: Path) -> None:
    table = next(d for d in json.loads(written.read_text())["distribution"] if d["@id"] == "manifest")
    assert f"sha256:{table['sha256']}" == digest_file(written.parent / table["contentUrl"])


def test_the_validator_sees_a_field_without_a_source(written: Path) -> None:
    content = json.loads(written.read_text())
    content["recordSet"][0]["field"][0]["source"]["fileObject"]["@id"] = "nowhere"
    written.write_text(json.dumps(content))
    with pytest.raises(mlc.ValidationError, match="nowhere"):
        mlc.Dataset(jsonld=str(written))
