"""A tiny random model, an evaluation set of six pictures, and the avatars' scorers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import pytest
import torch

from components.evaluate.evaluate import evaluate
from components.evaluate.settings import EvaluationSettings
from examples.avatars.data import EVALUATION
from lineage.digests import digest_file, digest_path
from tests.runs import AVATARS
from tests.training.tiny import save_bundle

torch.set_num_threads(1)
SCORERS = AVATARS / "models" / "scorers"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random Stable Diffusion 3 bundles that draw 32 x 32 pictures."""
    folder = tmp_path_factory.mktemp("models")
    return {who: save_bundle(folder / who, seed) for seed, who in enumerate(("candidate", "incumbent"))}


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The avatars' evaluation set with its first five prompts, one of them with two seeds, drawn small and fast."""
    root = tmp_path_factory.mktemp("set") / "evaluation"
    shutil.copytree(EVALUATION, root)
    prompts = (root / "prompts.jsonl").read_text().splitlines()[:5]
    asked = [json.loads(line) for line in prompts]
    for place, row in enumerate(asked):
        row["seeds"] = [*row["seeds"][:1], *([7] if place == 0 else [])]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    described = json.loads((root / "set.json").read_text())
    described |= {"num_inference_steps": 2, "height": 32, "width": 32}
    (root / "set.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of forty training portraits."""
    folder = tmp_path_factory.mktemp("validated")
    data = AVATARS / "data" / "new"
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()[:40]]
    listed = [
        {
            "file_name": row["file_name"],
            "text": row["text"],
            "uri": (data / row["file_name"]).as_uri(),
            "sha256": digest_file(data / row["file_name"]),
        }
        for row in rows
    ]
    pd.DataFrame(listed).to_parquet(folder / "manifest.parquet", index=False)
    return folder


def judge_models(
    asked: EvaluationSettings, models: Mapping[str, Path], target: Path, state: Path, *trained: Any
) -> dict[str, Any]:
    """What evaluate makes of local models, by who they are; its samples are kept in ``state``."""
    others = {who: (str(path), digest_path(path)) for who, path in models.items() if who != "candidate"}
    return evaluate(asked, "unused", models["candidate"], others, target, str(state), *trained)


def settings(evaluation_set: Path, *scorers: dict[str, Any], **changes: Any) -> EvaluationSettings:
    """Settings with the given scorers, or alignment alone."""
    asked = scorers or ({"scorer": "avatars-alignment", "weights": str(SCORERS / "alignment.safetensors")},)
    content = {"evaluation_set": str(evaluation_set), "scorers": asked, "batch_size": 4, "grid": 2, **changes}
    return EvaluationSettings.model_validate(content)
