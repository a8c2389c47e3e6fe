"""Running a Great Expectations suite on a table of facts.

A suite is the JSON that Great Expectations writes: ``{"name": …, "expectations": […]}``, each of them with
``type``, ``kwargs``, ``severity`` and ``description``. Its severities mean:

| severity | a row that fails it | the expectation as a whole does not hold |
|---|---|---|
| `critical` (the default) | is quarantined | the run fails |
| `warning` | is quarantined | is reported; too many quarantined rows fail the run |
| `info` | stays | is reported |

``mostly`` says how many rows may fail before the expectation as a whole no longer holds.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from components.validate_data.errors import DataValidationError
from components.validate_data.settings import ValidationSettings

Severity = Literal["critical", "warning", "info"]
UNIQUE = ("expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique")
POSITION = "triptych_position"
COMPLETE = {"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]}


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation."""

    name: str
    """Type and columns, such as ``expect_column_values_to_be_unique(sha256)``."""
    description: str
    severity: Severity
    holds: bool
    columns: tuple[str, ...]
    rows: tuple[int, ...] | None
    """Rows that fail it; None for an expectation about the table."""
    observed: str
    error: str | None
    """Why it could not be evaluated."""

    @property
    def unique(self) -> bool:
        """Whether rows fail it for being equal, so that one of each group may stay."""
        return self.name.split("(")[0] in UNIQUE


def read_suite(path: Path) -> list[dict[str, Any]]:
    """The expectations of a suite file, not yet checked by Great Expectations: cheap enough before a run.

    Raises:
        DataValidationError: the file is missing, is not JSON, or holds no list of expectations.
    """
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataValidationError(f"expectation suite {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataValidationError(f"expectation suite {path} is not JSON: {error}") from error
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list) or not expectations:
        raise DataValidationError(f"expectation suite {path} has no 'expectations'; without any nothing is checked")
    for number, expectation in enumerate(expectations, start=1):
        if not isinstance(expectation, dict) or not isinstance(expectation.get("type"), str):
            raise DataValidationError(f"expectation {number} of {path} is not an object with a 'type'")
    return expectations


def build_suite(expectations: list[dict[str, Any]], settings: ValidationSettings, reference: Path | None = None) -> Any:
    """A `great_expectations.ExpectationSuite`, each expectation checked.

    `ExpectationSuite` itself logs an expectation that it does not understand and goes on; here it fails.

    Args:
        reference: facts of the data accepted last, if there were any.

    Raises:
        DataValidationError: an expectation is unknown or malformed, or is about something that is not measured.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    from great_expectations import ExpectationSuite
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    from components.validate_data.expectations import TAKES_REFERENCE

    asked: dict[str, tuple[str, object]] = {"caption_tokens": ("validation.tokenizer", settings.tokenizer)}
    asked |= dict.fromkeys(("faces", "face_score", "face_share"), ("validation.faces", settings.faces))
    built = []
    for position, written in enumerate(expectations):
        stated = {key: value for key, value in written.items() if key != "id"}
        stated["meta"] = {**(written.get("meta") or {}), POSITION: position}
        if written["type"] == TAKES_REFERENCE and reference is not None and reference.is_file():
            stated["kwargs"] = {**written.get("kwargs", {}), "reference": str(reference)}
        try:
            expectation = ExpectationConfiguration(**stated).to_domain_obj()
        except (GreatExpectationsError, TypeError, ValueError) as error:
            raise DataValidationError(
                f"expectation {position + 1} ({written['type']}) is malformed: {error}"
            ) from error
        for column in _columns(expectation.dict()):
            setting, is_measured = asked.get(column, ("", True))
            if not is_measured:
                raise DataValidationError(
                    f"expectation {position + 1} ({written['type']}) is about {column}, which is not measured: set "
                    f"{setting}, or take it out of the suite"
                )
        built.append(expectation)
    return ExpectationSuite(name="suite", expectations=built)


def run_suite(suite: Any, facts: pa.Table) -> tuple[list[Outcome], str]:
    """Run ``suite`` on the columns that it is about of a table of facts.

    Returns:
        The outcomes in the suite's order, and Great Expectations' data docs about them, HTML.

    Raises:
        DataValidationError: the suite as a whole cannot be run.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.exceptions import GreatExpectationsError

    told = str([expectation.dict() for expectation in suite.expectations])
    columns = [name for name in facts.column_names if name == "row" or re.search(rf"\b{name}\b", told)]
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    try:
        batch = context.data_sources.pandas_default.read_dataframe(facts.select(columns).to_pandas())
        validated = batch.validate(suite, result_format=COMPLETE)
    except GreatExpectationsError as error:
        raise DataValidationError(f"the expectation suite cannot be run: {error}") from error
    results = validated.results
    about = {expectation.meta[POSITION]: _columns(expectation.dict()) for expectation in suite.expectations}
    positions = [result.expectation_config.meta[POSITION] for result in results]
    outcomes = {at: _outcome(result, about[at]) for at, result in zip(positions, results, strict=True)}
    if len(outcomes) != len(suite.expectations):
        raise DataValidationError(f"{len(outcomes)} of {len(suite.expectations)} expectations were evaluated")
    return [outcomes[position] for position in sorted(outcomes)], _page(validated)


def _page(validated: Any) -> str:
    """Great Expectations' own page about a result; it shows some of the failing values."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    page: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(validated))
    return page


def _outcome(result: Any, columns: tuple[str, ...]) -> Outcome:
    config = result.expectation_config
    name = f"{config.type}({', '.join(columns)})" if columns else config.type
    found = result.result
    failing = found.get("unexpected_index_list")
    observed = str(found["observed_value"]) if "observed_value" in found else ""
    if failing is not None:
        observed = f"{len(failing)} of {found['element_count']} rows fail"
    return Outcome(
        name=name,
        description=config.description or name,
        severity=config.severity.value,
        holds=bool(result.success),
        columns=columns,
        rows=None if failing is None else tuple(sorted(int(index["row"]) for index in failing)),
        observed=observed,
        error=_error(result.exception_info),
    )


def _columns(stated: dict[str, Any]) -> tuple[str, ...]:
    """The columns that an expectation is about, those that its type implies among them."""
    single = [stated[key] for key in ("column", "column_A", "column_B") if key in stated]
    return tuple(single + list(stated.get("column_list") or []))


def _error(info: dict[str, Any] | None) -> str | None:
    """Great Expectations gives one exception, or one for each metric that could not be computed."""
    each = [info] if info and "raised_exception" in info else list((info or {}).values())
    messages = {str(one["exception_message"]) for one in each if one["raised_exception"]}
    return "; ".join(sorted(messages)) or None
