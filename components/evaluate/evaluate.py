"""Sample candidate and incumbent on the same prompts and seeds, and score both."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from components.evaluate.evaluation_set import read_evaluation_set
from components.evaluate.pictures import draw_sample_grid
from components.evaluate.sampling import sample
from components.evaluate.scoring import load_scorer, score_pictures
from components.evaluate.settings import EvaluationSettings
from lineage.digests import digest_path
from lineage.registry import fetch_weights


def evaluate_against(
    settings: EvaluationSettings,
    tracking_uri: str,
    incumbent_uri: str,
    incumbent_digest: str,
    candidate: Path,
    target: Path,
) -> dict[str, Any]:
    """Fetch the incumbent, checked by digest, and compare the candidate with it; see `evaluate`."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        incumbent = fetch_weights(tracking_uri, incumbent_uri, incumbent_digest, Path(folder) / "incumbent")
        return evaluate(settings, {"candidate": candidate, "incumbent": incumbent}, target)


def evaluate(settings: EvaluationSettings, models: Mapping[str, Path], target: Path) -> dict[str, Any]:
    """Fill ``target`` with samples, ``scores.parquet``, ``grid.png`` (also as HTML) and ``evaluation.json``.

    Args:
        models: ``candidate`` and ``incumbent`` -> the folder of its weights.

    Returns:
        The content of ``evaluation.json``: the digests of everything that decides the scores.
    """
    evaluation_set = read_evaluation_set(settings.evaluation_set, settings.limit)
    scorers = [load_scorer(scorer) for scorer in settings.scorers]
    sampling = evaluation_set.description.sampling
    rows: list[dict[str, Any]] = []
    files: dict[str, list[Path]] = {}
    for who, model in models.items():
        files[who] = sample(model, evaluation_set.samples, sampling, settings.batch_size, target / "samples" / who, who)
        rows += score_pictures(scorers, files[who], evaluation_set.samples, who)
    pd.DataFrame(rows).to_parquet(target / "scores.parquet", index=False)
    draw_sample_grid(evaluation_set.samples, files, settings.grid, target / "grid.png")
    image = base64.b64encode((target / "grid.png").read_bytes()).decode()
    (target / "grid.html").write_text(f'<img alt="sample grid" src="data:image/png;base64,{image}">\n')
    facts: dict[str, Any] = {
        "evaluation_set": {
            "name": evaluation_set.description.name,
            "version": evaluation_set.description.version,
            "digest": evaluation_set.digest,
            "prompts": {prompt.id: prompt.attributes for prompt in evaluation_set.prompts},
        },
        "sampling": sampling.model_dump(),
        "scorers": [{"name": s.name, "axis": s.axis, "digest": s.digest} for s in scorers],
        "scores": digest_path(target / "scores.parquet"),
        **{who: {"digest": digest_path(model)} for who, model in models.items()},
    }
    (target / "evaluation.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return facts
