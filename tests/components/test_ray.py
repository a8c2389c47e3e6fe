"""Where data outgrows a machine: the same facts come from a Ray cluster of two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.validate_data.facts import read_manifest, write_facts
from components.validate_data.settings import ValidationSettings
from tests.components.test_validate_data import Portraits


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with one core each, on the loopback address."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    made.add_node(num_cpus=1, object_store_memory=2**27)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_two_nodes_give_the_facts_that_threads_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any
) -> None:
    import ray

    portraits = Portraits(tmp_path)
    portraits.add("broken.png", b"broken")
    manifest, settings = read_manifest(portraits.pin()), ValidationSettings(suite="none", processes=2)
    write_facts(manifest, settings, tmp_path / "ray.parquet")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    assert [node["Resources"]["CPU"] for node in nodes] == [1.0, 1.0], "so two workers were on two nodes"
    monkeypatch.delenv("RAY_ADDRESS")
    write_facts(manifest, settings, tmp_path / "threads.parquet")
    assert pq.read_table(tmp_path / "ray.parquet").equals(pq.read_table(tmp_path / "threads.parquet"))
