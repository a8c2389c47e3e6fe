"""Which rows are set aside, and why; and whether the rest may be used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from components.validate_data.suite import Outcome

LONGEST_VALUE = 200


class Finding(NamedTuple):
    """One expectation that one row of the snapshot fails: a row of ``quarantine.parquet``."""

    row: int
    file_name: str
    expectation: str
    value: str | None
    reason: str


SCHEMA = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in Finding._fields])


def find_rows(outcomes: Sequence[Outcome], facts: pa.Table) -> list[Finding]:
    """The rows to set aside, in their order.

    Of rows that fail for being equal, the first that fails nothing else stays, so that no picture is lost.

    Args:
        facts: the table that the outcomes are about.
    """
    judging = [outcome for outcome in outcomes if outcome.severity != "info" and outcome.rows]
    failing = sorted({row for outcome in judging for row in outcome.rows or ()})
    names = {"row", "file_name", "problem", *(column for outcome in judging for column in outcome.columns)}
    failed = facts.select([name for name in facts.column_names if name in names]).take(pa.array(failing, pa.int64()))
    table = dict(zip(failing, failed.to_pylist(), strict=True))
    found: dict[int, list[Finding]] = defaultdict(list)
    for outcome in (one for one in judging if not one.unique):
        for row in outcome.rows or ():
            found[row].append(_finding(outcome, table[row], _detail(outcome, table[row])))
    for outcome in (one for one in judging if one.unique):
        for kept, others in _groups(outcome, table, frozenset(found)):
            for row in others:
                found[row].append(_finding(outcome, table[row], f"same as {table[kept]['file_name']}"))
    return [finding for row in sorted(found) for finding in found[row]]


def failures(outcomes: Sequence[Outcome], quarantined: int, rows: int, max_share: float) -> list[str]:
    """Why the run has to fail; empty when it may go on."""
    reasons = [
        f"expectation {outcome.name} could not be evaluated: {outcome.error}; correct the suite"
        for outcome in outcomes
        if outcome.error
    ]
    reasons += [
        f"critical expectation does not hold: {outcome.description} ({outcome.observed or outcome.name})"
        for outcome in outcomes
        if outcome.severity == "critical" and not outcome.holds and not outcome.error
    ]
    if quarantined > max_share * rows:
        share = f"{quarantined} of {rows} rows are quarantined ({quarantined / rows:.2%})"
        reasons.append(f"{share}, more than max_quarantined_share {max_share:.2%}")
    if quarantined == rows:
        reasons.append("no row is left to train on")
    return reasons


def _groups(outcome: Outcome, table: dict[int, dict[str, Any]], failing: frozenset[int]) -> list[tuple[int, list[int]]]:
    """For each set of equal rows: the one that stays, and the others."""
    equal: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in outcome.rows or ():
        equal[tuple(table[row][column] for column in outcome.columns)].append(row)
    groups = []
    for rows in equal.values():
        kept = next((row for row in rows if row not in failing), rows[0])
        groups.append((kept, [row for row in rows if row != kept]))
    return groups


def _finding(outcome: Outcome, row: dict[str, Any], detail: str) -> Finding:
    values = {column: row.get(column) for column in outcome.columns}
    value = None if set(values.values()) <= {None} else _short(values)
    return Finding(row["row"], row["file_name"], outcome.name, value, f"{outcome.description}: {detail}")


def _detail(outcome: Outcome, row: dict[str, Any]) -> str:
    if "decodes" in outcome.columns and row["problem"]:
        return str(row["problem"])
    return ", ".join(
        f"{column} is {'missing' if row.get(column) is None else _short({column: row[column]})}"
        for column in outcome.columns
    )


def _short(values: dict[str, Any]) -> str:
    """One value as it is, several with their names."""
    parts = [str(value) if len(values) == 1 else f"{column}={value}" for column, value in values.items()]
    text = ", ".join(parts)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
