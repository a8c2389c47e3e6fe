"""The threat model names tests; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path("docs")
TESTS = {
    name for path in Path("tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}


def test_each_line_of_the_threat_model_names_a_test_that_is_there() -> None:
    rows = [line for line in (DOCS / "threat-model.md").read_text().splitlines() if line.startswith("| ")]
    told = [row for row in rows if re.search(r"`test_\w+`", row)]
    assert len(told) > 25
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "threat-model.md").read_text()))
    assert named <= TESTS, f"the threat model names tests that are not there: {sorted(named - TESTS)}"


def test_the_channels_attacks_name_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "channel.md").read_text()))
    assert named and named <= TESTS, sorted(named - TESTS)
