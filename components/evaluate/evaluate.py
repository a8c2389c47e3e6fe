"""Sample candidate, incumbent and anchor on the same prompts and seeds, and score them.

Whatever makes the scores unusable (weights that draw NaN, a champion that no longer loads, a scorer that raises) is
written into ``evaluation.json`` as ``unusable``, without scores: the verdict is then invalid, for that reason.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from components.evaluate.evaluation_set import EvaluationError, EvaluationSet, read_evaluation_set
from components.evaluate.judging import Judge
from components.evaluate.pictures import draw_sample_grid
from components.evaluate.sampling import collect, draw
from components.evaluate.scoring import load_scorers
from components.evaluate.settings import EvaluationSettings
from lineage.artifacts import fetch_weights
from lineage.digests import LineageError, digest_path
from lineage.policy import by_content
from lineage.records import RunContext
from lineage.scores import COLUMNS, EVALUATION_FILE, TABLE_FILE


def opponents(
    incumbent_uri: str, incumbent_digest: str, anchor_uri: str, anchor_digest: str
) -> dict[str, tuple[str, str]]:
    """Whom a candidate is compared with -> (URI, digest) of the weights; the anchor only where there is one."""
    anchor = {"anchor": (anchor_uri, anchor_digest)} if anchor_uri else {}
    return {"incumbent": (incumbent_uri, incumbent_digest), **anchor}


def decision_of(settings: EvaluationSettings, context: RunContext) -> int:
    """Which decision on its evaluation set the run will make, where prompts and seeds depend on it; otherwise 1."""
    if settings.rotate is None:
        return 1
    return 1 + context.open_ledger().state.decisions(digest_path(settings.evaluation_set))


def evaluate(
    settings: EvaluationSettings,
    tracking_uri: str,
    candidate: Path,
    others: Mapping[str, tuple[str, str]],
    target: Path,
    state: str = "",
    training: Mapping[str, Any] | None = None,
    validated: Path | None = None,
    decision: int = 1,
) -> dict[str, Any]:
    """Fill ``target`` with samples, ``scores.parquet``, ``grid.png`` (also as HTML) and ``evaluation.json``.

    Args:
        others: ``incumbent`` (and ``anchor``) -> URI and digest of its weights, which are fetched and checked.
        state: the folder that keeps samples for later; empty: none does.
        training: the training section, for the networks that supervised the candidate.
        validated: the pictures that the candidate was trained on, for memorisation.
        decision: see `decision_of`.

    Returns:
        The content of ``evaluation.json``: the digests of everything that decides the scores.
    """
    target.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"evaluation_set": _describe(None), "scorers": [], "terms": _terms(settings)}
    facts |= {"candidate": {"digest": digest_path(candidate)}, **{who: {"digest": d} for who, (_, d) in others.items()}}
    with tempfile.TemporaryDirectory() as folder:
        try:
            models = _fetch(tracking_uri, candidate, others, Path(folder))
            evaluation_set = read_evaluation_set(settings.evaluation_set, settings.limit, settings.rotate, decision)
            facts["evaluation_set"] = _describe(evaluation_set)
            facts["sampling"] = evaluation_set.description.sampling.model_dump()
            judge = Judge(load_scorers(settings.scorers), evaluation_set, validated)
            facts["scorers"] = judge.describe()
            facts["leakage"] = judge.check_leakage(settings, training or {})
            files, store = {}, Path(state or folder) / "samples"
            for who, model in models.items():
                drawn, under = draw(model, evaluation_set, settings.batch_size, store, who, how=settings.drawing)
                files[who] = collect(drawn, evaluation_set, settings.batch_size, target / "samples" / who)
                facts["machine"] = under.machine
                judge.score(who, files[who])
            facts |= judge.finish(target)
        except LineageError as error:
            return _fail(target, facts, str(error))
    pd.DataFrame(judge.rows, columns=list(COLUMNS)).to_parquet(target / TABLE_FILE, index=False)
    draw_sample_grid(evaluation_set.samples, files, settings.grid, target / "grid.png")
    image = base64.b64encode((target / "grid.png").read_bytes()).decode()
    (target / "grid.html").write_text(
        f'<img alt="sample grid" style="max-width:100%" src="data:image/png;base64,{image}">\n'
    )
    return _write(target, facts)


def _fetch(tracking_uri: str, candidate: Path, others: Mapping[str, tuple[str, str]], folder: Path) -> dict[str, Path]:
    models = {"candidate": candidate}
    for who, (uri, digest) in others.items():
        try:
            models[who] = fetch_weights(tracking_uri, uri, digest, folder / who)
        except LineageError as error:
            raise EvaluationError(f"the {who}: {error}") from error
    return models


def draw_shard(
    settings: EvaluationSettings,
    tracking_uri: str,
    candidate: Path,
    others: Mapping[str, tuple[str, str]],
    state: str,
    shard: int,
    shards: int,
    decision: int = 1,
) -> str:
    """Draw one share of every model's samples into the store, for `evaluate` to find.

    Returns:
        What went wrong, or nothing: it will go wrong again in evaluate, which says so in the verdict.

    Raises:
        EvaluationError: ``state`` is empty: shares that nobody can see are no use.
    """
    if not state:
        raise EvaluationError("samples can be shared out only where steps share a state folder; set shards to 1")
    try:
        evaluation_set = read_evaluation_set(settings.evaluation_set, settings.limit, settings.rotate, decision)
        with tempfile.TemporaryDirectory() as folder:
            models = _fetch(tracking_uri, candidate, others, Path(folder))
            for who, model in models.items():
                where = Path(state) / "samples", who
                draw(model, evaluation_set, settings.batch_size, *where, shard, shards, settings.drawing)
    except LineageError as error:
        return str(error)
    return ""


def _terms(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings by content: what the ledger pins of them as policy."""
    return dict(by_content(settings.model_dump(mode="json")))


def _describe(evaluation_set: EvaluationSet | None) -> dict[str, Any]:
    if evaluation_set is None:
        return {"name": "", "version": 0, "digest": "", "prompts": {}, "seeds": {}, "sealed": []}
    return {
        "name": evaluation_set.description.name,
        "version": evaluation_set.description.version,
        "digest": evaluation_set.digest,
        "prompts": {prompt.id: prompt.attributes for prompt in evaluation_set.prompts},
        "seeds": {prompt.id: list(prompt.seeds) for prompt in evaluation_set.prompts},
        "sealed": [prompt.id for prompt in evaluation_set.prompts if prompt.sealed],
    }


def _fail(target: Path, facts: dict[str, Any], reason: str) -> dict[str, Any]:
    """An evaluation without scores, and why."""
    pd.DataFrame([], columns=list(COLUMNS)).to_parquet(target / TABLE_FILE, index=False)
    (target / "grid.html").write_text("<p>There are no samples to show: the evaluation failed.</p>\n")
    return _write(target, {**facts, "unusable": reason})


def _write(target: Path, facts: dict[str, Any]) -> dict[str, Any]:
    facts["scores"] = digest_path(target / TABLE_FILE)
    (target / EVALUATION_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return facts
