"""The scores artifact: what is written is what is read, and what is broken is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lineage.digests import LineageError
from lineage.pictures import manifest_rows
from lineage.scores import COLUMNS, REFERENCES, SETS_FILE, Kernel, SetMeasure, read_sets, stated, write_sets

ROWS = [("p1", 3), ("p2", 4), ("p2", 5)]


def measures() -> list[SetMeasure]:
    draw = np.random.default_rng(0)
    features = {who: draw.normal(size=(3, 4)).astype(np.float32) for who in ("candidate", "incumbent", REFERENCES)}
    return [
        SetMeasure("realism/cmmd", Kernel(name="rbf", sigma=10, scale=1000), features),
        SetMeasure("realism/kid", Kernel(name="polynomial"), features),
    ]


def test_features_come_back_as_they_were(tmp_path: Path) -> None:
    write_sets(tmp_path, ROWS, measures())
    found = read_sets(tmp_path / SETS_FILE)
    assert found.rows == tuple(ROWS)
    for was, now in zip(measures(), found.measures, strict=True):
        assert (was.measure, was.kernel) == (now.measure, now.kernel)
        assert {who: f.tolist() for who, f in was.features.items()} == {w: f.tolist() for w, f in now.features.items()}


def test_equal_features_have_one_digest(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert write_sets(tmp_path, ROWS, measures()) == write_sets(tmp_path / "other", ROWS, measures())


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_broken_file_is_refused(tmp_path: Path, keep: int) -> None:
    write_sets(tmp_path, ROWS, measures())
    path = tmp_path / SETS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LineageError, match=SETS_FILE):
        read_sets(path)


def test_a_verdict_repeats_all_but_the_prompts() -> None:
    whole = {"name": "a", "digest": "sha256:1"}
    evaluation = {"scores": "sha256:2", "evaluation_set": {**whole, "prompts": {"p1": {}}, "seeds": {"p1": [3]}}}
    assert stated(evaluation) == {"scores": "sha256:2", "evaluation_set": whole}
    assert "prompts" in evaluation["evaluation_set"]


def test_a_table_without_rows_is_read(tmp_path: Path) -> None:
    """As an evaluation that could not be made leaves it: its columns have no kind."""
    pd.DataFrame([], columns=list(COLUMNS)).to_parquet(tmp_path / "scores.parquet", index=False)
    assert list(manifest_rows(tmp_path / "scores.parquet")) == []
