"""Real runs of the avatars pipeline on a cut-down configuration, shared by the tests that look at them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.runs import cut_down, some_portraits, triptych


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder that the runs share, as they would at a desk."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def good_configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return cut_down(folder, some_portraits("new", folder / "portraits"))


@pytest.fixture(scope="session")
def promoted(work: Path, good_configuration: Path) -> subprocess.CompletedProcess[str]:
    """A first run on good data."""
    return triptych("retrain", "--config", good_configuration, "--work-dir", work)


@pytest.fixture(scope="session")
def rejected(
    work: Path, promoted: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A second run, on shuffled captions."""
    folder = tmp_path_factory.mktemp("shuffled")
    path = cut_down(folder, some_portraits("shuffled", folder / "portraits"))
    return triptych("retrain", "--config", path, "--work-dir", work)


@pytest.fixture(scope="session")
def repeated(
    work: Path, rejected: subprocess.CompletedProcess[str], good_configuration: Path
) -> subprocess.CompletedProcess[str]:
    """A third run, on the good data again."""
    return triptych("retrain", "--config", good_configuration, "--work-dir", work)
