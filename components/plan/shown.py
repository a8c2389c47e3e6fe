"""The data of a run, as MLflow shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lineage.digests import hex_of
from lineage.registry import Registry


def log_dataset(store: Registry, mlflow_run: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
    """Show in MLflow which data a run trains on.

    Args:
        digest: of the snapshot. MLflow shows 36 characters of one; all of it stands in the profile.
        source: URI or path of where it came from.
        profile: what is known of it, such as the number of rows.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = source if "://" in source else f"file://{source}"
    shown = Dataset(
        name=place.rstrip("/").rpartition("/")[2][:500] or "data",
        digest=hex_of(digest)[:36],
        source_type=place.partition("://")[0],
        source=json.dumps({"uri": place}),
        profile=json.dumps({"digest": digest, **profile}),
    )
    store.client.log_inputs(mlflow_run, [DatasetInput(shown, [InputTag("mlflow.data.context", "training")])])
