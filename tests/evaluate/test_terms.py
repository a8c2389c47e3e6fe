"""The code of a scorer, ours or plugged in, decides whether something is new."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from components.plan.keys import PACKAGES, evaluation_terms, scorers_code
from lineage.digests import code_digest

ENTRY = "[triptych.scorers]\nmended = mended.scorer:Scorer\n"


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a scorer of its own."""
    info = tmp_path / "mended-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mended\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY)
    package = tmp_path / "mended"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "scorer.py").write_text("class Scorer: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return package


def test_a_mended_scorer_is_new(plugged_in: Path) -> None:
    evaluation = {"scorers": [{"scorer": "mended", "weights": "none"}]}
    assert scorers_code(evaluation) == {"mended"}
    before = evaluation_terms(evaluation, {})
    assert evaluation_terms(evaluation, {}) == before
    (plugged_in / "scorer.py").write_text("class Scorer: mended = True\n")
    code_digest.cache_clear()  # as in the next process
    assert evaluation_terms(evaluation, {}) != before
    assert scorers_code({"scorers": [{"scorer": "kid"}, {"scorer": "avatars-kid"}]}) == {
        "components.evaluate.scorers",
        "examples.avatars",
    }


def test_another_version_of_a_package_is_new(plugged_in: Path) -> None:
    before = evaluation_terms({}, {})
    metadata = plugged_in.parent / "mended-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert evaluation_terms({}, {}) != before


def test_the_image_that_plans_asks_for_the_packages_of_both_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tmp_path / "packages.txt"
    monkeypatch.setenv(PACKAGES, str(both))
    both.write_text("torch-2.13.0-cp311-cp311-linux_x86_64.whl\n")
    before = evaluation_terms({}, {})
    assert evaluation_terms({}, {}) == before
    both.write_text("torch-2.14.0-cp311-cp311-linux_x86_64.whl\n")
    assert evaluation_terms({}, {}) != before
