"""The expectations of our own: what fails them, and what does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.validate_data.errors import DataValidationError
from components.validate_data.facts import SCHEMA
from components.validate_data.settings import ValidationSettings
from components.validate_data.suite import Outcome, build_suite, run_suite
from components.validate_data.validate import REFERENCE, validate
from tests.components.test_validate_data import AVATARS, TOKENIZER, Portraits, picture

Columns = dict[str, list[Any]]


def judge(kind: str, columns: Columns, reference: Path | None = None, **kwargs: Any) -> Outcome:
    suite = build_suite([{"type": kind, "kwargs": kwargs}], ValidationSettings(suite="none"), reference)
    (outcome,), _ = run_suite(suite, table(columns))
    assert outcome.error is None
    return outcome


def table(columns: Columns) -> pa.Table:
    rows = len(next(iter(columns.values())))
    given = {name: columns.get(name, [None] * rows) for name in SCHEMA.names} | {"row": list(range(rows))}
    return pa.table(given, schema=SCHEMA)


# type, arguments, columns, the rows that fail
ROWS: dict[str, tuple[str, dict[str, Any], Columns, list[int]]] = {
    "one face": ("expect_portrait_to_show_one_face", {}, {"faces": [1, 0, 2, None]}, [1, 2]),
    "its share": (
        "expect_face_to_fill",
        {"min_value": 0.1, "max_value": 0.8},
        {"face_share": [0.5, 0.05, 0.9, None]},
        [1, 2],
    ),
    "no leak": (
        "expect_no_leak_between_splits",
        {},
        {"sha256": ["a", "b", "c", "c"], "split": ["train", "validation", "train", "train"]},
        [],
    ),
    "leaks": (
        "expect_no_leak_between_splits",
        {},
        {"sha256": list("aabbcd"), "split": ["train", "test", "validation", "test", "train", "test"]},
        [0, 2],
    ),
    "look-alikes leak": (
        "expect_no_leak_between_splits",
        {"column_list": ["phash", "split"]},
        {"phash": ["0f", "0f", None, None], "split": ["train", "validation", "train", "test"]},
        [0],
    ),
}


@pytest.mark.parametrize(("kind", "kwargs", "columns", "failing"), ROWS.values(), ids=ROWS)
def test_rows_that_fail(kind: str, kwargs: dict[str, Any], columns: Columns, failing: list[int]) -> None:
    outcome = judge(kind, columns, **kwargs)
    assert list(outcome.rows or ()) == failing
    assert outcome.holds is not bool(failing)


@pytest.mark.parametrize("column", ["caption_length", "width", "face_share"])
def test_drift_is_the_kolmogorov_smirnov_statistic(tmp_path: Path, column: str) -> None:
    unit = 0.01 if column == "face_share" else 1
    before = tmp_path / "before.parquet"
    pq.write_table(table({column: [value * unit for value in range(100)]}), before)
    now = {column: [(value + 15) * unit for value in range(100)]}
    strict = judge("expect_distribution_to_stay", now, before, column=column, max_distance=0.1)
    assert not strict.holds
    assert strict.rows is None
    assert strict.observed == "0.150 from the data accepted last, 0.1 allowed"
    assert judge("expect_distribution_to_stay", now, before, column=column, max_distance=0.2).holds


def test_without_earlier_data_nothing_drifts(tmp_path: Path) -> None:
    outcome = judge("expect_distribution_to_stay", {"width": [1, 2]}, tmp_path / "none", column="width")
    assert outcome.holds
    assert outcome.observed == "there is no earlier data"


def test_data_is_compared_with_the_data_accepted_last(tmp_path: Path) -> None:
    drift = {
        "type": "expect_distribution_to_stay",
        "kwargs": {"column": "caption_length", "max_distance": 0.3},
        "severity": "critical",
        "description": "Captions are as long as in the data accepted last",
    }
    portraits = Portraits(tmp_path, rows=8)
    settings, state = ValidationSettings(suite=portraits.suite(drift), faces=False), tmp_path / "state"
    validate(settings, portraits.pin(), portraits.validated, state)
    accepted = (state / REFERENCE).read_bytes()
    for row in portraits.rows[:4]:
        row["text"] = "short"
    with pytest.raises(DataValidationError, match=r"Captions are as long .*0\.500 from the data accepted last"):
        validate(settings, portraits.pin(), portraits.validated, state)
    assert (state / REFERENCE).read_bytes() == accepted
    assert validate(settings, portraits.pin(), portraits.validated, tmp_path / "another").accepted == 8


NOT_MEASURED = {
    "faces": ({"type": "expect_portrait_to_show_one_face", "kwargs": {}}, "set validation.faces"),
    "tokens": (
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "caption_tokens", "max_value": 77}},
        "set validation.tokenizer",
    ),
}


@pytest.mark.parametrize(("stated", "message"), NOT_MEASURED.values(), ids=NOT_MEASURED)
def test_what_is_not_measured_cannot_be_expected(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(DataValidationError, match=message):
        build_suite([stated], ValidationSettings(suite="none", faces=False))


def test_great_expectations_own_page_shows_ours_too(tmp_path: Path) -> None:
    portraits = Portraits(tmp_path)
    portraits.add("twice.png", picture(3))
    portraits.validate()
    page = (portraits.validated / "expectations.html").read_text(encoding="utf-8")
    assert "caption_length" in page
    summary = json.loads((portraits.validated / "summary.json").read_text())
    assert {one["expectation"] for one in summary["expectations"]} >= {
        "expect_portrait_to_show_one_face(faces)",
        "expect_face_to_fill(face_share)",
        "expect_no_leak_between_splits(sha256, split)",
        "expect_distribution_to_stay(caption_length)",
    }


def test_a_suite_is_run_on_the_columns_it_is_about() -> None:
    columns: Columns = {"width": np.arange(5).tolist()}
    suite = [{"type": "expect_column_values_to_be_between", "kwargs": {"column": "widht", "max_value": 3}}]
    built = build_suite(suite, ValidationSettings(suite=str(AVATARS), tokenizer=TOKENIZER))
    (outcome,), _ = run_suite(built, table(columns))
    assert 'The column "widht"' in (outcome.error or "")
