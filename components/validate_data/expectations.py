"""Expectations of our own, for suites beside those that Great Expectations brings.

| type | arguments | fails |
|---|---|---|
| `expect_portrait_to_show_one_face` | – | rows where no face, or more than one, was found |
| `expect_face_to_fill` | `min_value`, `max_value` | rows where the face takes less or more of the frame (0 to 1) |
| `expect_no_leak_between_splits` | `column_list`: a column, `split` | rows whose value a later split holds too |
| `expect_distribution_to_stay` | `column`, `max_distance` | the table, where the column drifted |

Splits come in the order train, validation, test: what is held out stays, what would be trained on goes.
Rows whose value is null fail none of them. Drift is the Kolmogorov-Smirnov statistic, 0 to 1, against
the data accepted last: the largest difference between the shares of rows up to any value. Without earlier data there
is none.

Importing this module makes the types known to Great Expectations.
"""

from __future__ import annotations

from typing import Any, ClassVar

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow.parquet as pq
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation, MulticolumnMapExpectation
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_value,
)
from great_expectations.expectations.metrics.map_metric_provider import (
    MulticolumnMapMetricProvider,
    multicolumn_condition_partial,
)
from scipy.stats import ks_2samp  # type: ignore[import-untyped]

SPLITS = ("train", "validation", "test")


class ExpectPortraitToShowOneFace(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """Exactly one face was found."""

    column: str = "faces"
    min_value: float = 1
    max_value: float = 1


class ExpectFaceToFill(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """The largest face takes its share of the frame."""

    column: str = "face_share"


class OneSplit(MulticolumnMapMetricProvider):  # type: ignore[misc]
    """Whether no later split has the row's value too."""

    condition_metric_name = "multicolumn_values.one_split"
    condition_domain_keys = ("batch_id", "table", "column_list", "row_condition", "condition_parser", "ignore_row_if")
    condition_value_keys = ()

    @multicolumn_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_list: pd.DataFrame, **_: Any) -> pd.Series[bool]:
        value, split = column_list.iloc[:, 0], column_list.iloc[:, 1]
        rank = split.map({name: place for place, name in enumerate(SPLITS)}).fillna(len(SPLITS))
        return value.isna() | (rank == rank.groupby(value).transform("max"))


class ExpectNoLeakBetweenSplits(MulticolumnMapExpectation):  # type: ignore[misc]
    """What is held out is not trained on."""

    column_list: list[str] = ["sha256", "split"]  # noqa: RUF012 (a pydantic field)
    map_metric: ClassVar[str] = "multicolumn_values.one_split"
    args_keys: ClassVar[tuple[str, ...]] = ("column_list",)


class DistanceToReference(ColumnAggregateMetricProvider):  # type: ignore[misc]
    """The Kolmogorov-Smirnov statistic between a column and the same column of earlier facts; None without them."""

    metric_name = "column.distance_to_reference"
    value_keys = ("reference",)

    @column_aggregate_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: pd.Series[float], reference: str | None = None, **_: Any) -> float | None:
        if reference is None or column.name not in pq.read_schema(reference).names:
            return None
        before = pq.read_table(reference, columns=[column.name])[column.name].drop_null().to_numpy()
        if not len(before) or not len(column):
            return None if len(before) == len(column) else 1.0
        return float(ks_2samp(before, column.to_numpy(), method="asymp").statistic)


class ExpectDistributionToStay(ColumnAggregateExpectation):  # type: ignore[misc]
    """A column is distributed as in the data accepted last."""

    column: str
    max_distance: float = 0.1
    reference: str | None = None
    """Facts of the data accepted last; set when the suite is run."""

    metric_dependencies: ClassVar[tuple[str, ...]] = ("column.distance_to_reference",)
    success_keys: ClassVar[tuple[str, ...]] = ("max_distance", "reference")
    args_keys: ClassVar[tuple[str, ...]] = ("column", "max_distance")

    def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
        distance = metrics["column.distance_to_reference"]
        if distance is None:
            return {"success": True, "result": {"observed_value": "there is no earlier data"}}
        observed = f"{distance:.3f} from the data accepted last, {self.max_distance:g} allowed"
        return {"success": distance <= self.max_distance, "result": {"observed_value": observed}}


TAKES_REFERENCE = "expect_distribution_to_stay"
