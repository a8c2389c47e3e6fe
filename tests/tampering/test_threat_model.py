"""The threat model names tests; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path("docs")
TESTS = {
    name for path in Path("tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}


UNTESTED = {"as an administrator of MLflow with basic-auth: set an officer's password and act as him"}
"""What nothing stops, so that no test can show what does."""


def claims(page: str) -> dict[str, str]:
    """What an adversary can do -> the tests' cell, of all tables of a page whose last column is ``tests``."""
    found, inside = {}, False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[-1] == "tests":
            inside = True
        elif inside and not line.startswith("|---"):
            found[cells[0]] = cells[-1]
    return found


def test_each_line_of_the_threat_model_names_a_test_that_is_there() -> None:
    page = (DOCS / "threat-model.md").read_text()
    without = {claim for claim, tests in claims(page).items() if not re.search(r"`test_\w+`", tests)}
    assert len(claims(page)) > 40
    assert without == UNTESTED
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named <= TESTS, f"the threat model names tests that are not there: {sorted(named - TESTS)}"


def test_the_channels_attacks_name_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "channel.md").read_text()))
    assert named and named <= TESTS, sorted(named - TESTS)
