"""What docs and README say of the embedded default's runs follows from the lines kept of them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.default_runs import LINES, table

DOCS = Path("docs")


def test_the_table_and_the_readme_say_what_the_kept_runs_did() -> None:
    lines = [json.loads(line) for line in (DOCS / LINES).read_text("utf-8").splitlines()]
    assert [(line["run"], line["decision"]) for line in lines] == [
        ("retrain", "promote"),
        ("plain", "reject"),
        ("shuffled", "reject"),
    ]
    assert table(lines) in (DOCS / "avatars.md").read_text("utf-8")
    readme = Path("README.md").read_text("utf-8")
    assert all(reason in readme for reason in lines[0]["reasons"])


def test_plain_training_is_rejected_for_what_it_forgot() -> None:
    """Alignment falls on what the pictures do not show: other skins, though glasses and beards may be kept."""
    plain = next(line for line in map(json.loads, (DOCS / LINES).read_text().splitlines()) if line["run"] == "plain")
    figures = {figure["name"]: figure for figure in plain["figures"]}
    for name in ("alignment", "dark skin", "tan skin"):
        assert figures[name]["upper"] < -figures[name]["margin"], name
