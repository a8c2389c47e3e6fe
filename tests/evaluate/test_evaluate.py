"""Evaluate gives scores, or says why there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from components.evaluate.evaluate import draw_shard, evaluate
from components.evaluate.evaluation_set import EvaluationError, read_evaluation_set
from components.evaluate.judging import Judge
from components.evaluate.scoring import load_scorers, measures, score_pictures
from components.evaluate.settings import ScorerSettings
from components.gate.scores import read_scores
from components.gate.settings import AXES
from components.gate.verdict import decide
from examples.avatars.data import EVALUATION
from lineage.digests import digest_path
from lineage.scores import MODELS, read_sets
from pipelines.configuration import read_configuration
from tests.evaluate.conftest import SCORERS, judge_models, settings
from tests.runs import AVATARS

ALL = [
    {"scorer": f"avatars-{axis}", "weights": str(SCORERS / f"{axis}.safetensors")}
    for axis in ("alignment", "realism", "aesthetics")
] + [
    {"scorer": f"avatars-{name}", "weights": str(SCORERS / "realism.safetensors")}
    for name in ("kid", "memorisation", "diversity")
]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def judged(
    models: dict[str, Path], small_set: Path, validated: Path, state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole evaluation with an anchor, which here is the incumbent again."""
    target = tmp_path_factory.mktemp("scores")
    compared = {**models, "anchor": models["incumbent"]}
    facts = judge_models(settings(small_set, *ALL), compared, target, state, {}, validated)
    assert "unusable" not in facts, facts
    return target


def said(target: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((target / "evaluation.json").read_text())
    return content


def test_every_model_is_scored_on_every_sample(judged: Path, small_set: Path) -> None:
    table = pd.read_parquet(judged / "scores.parquet")
    assert set(table["model"]) == set(MODELS)
    assert {"alignment", "alignment/glasses", "realism", "aesthetics", "memorisation", "diversity"} <= set(
        table["measure"]
    )
    assert not table.duplicated(["prompt", "seed", "model", "measure"]).any()
    counts = table.groupby(["measure", "model"]).size()
    assert (counts["diversity"] == 2).all(), "of the prompt that has two seeds"
    assert (counts.drop("diversity", level="measure") == 6).all()
    facts = said(judged)
    prompts = read_evaluation_set(str(small_set)).prompts
    assert facts["evaluation_set"]["seeds"] == {prompt.id: list(prompt.seeds) for prompt in prompts}
    assert facts["scores"] == digest_path(judged / "scores.parquet")
    assert facts["leakage"] == {"allowed": False, "found": []}
    assert {s["name"]: s["measure"] for s in facts["scorers"]}["avatars-kid"] == "realism/avatars-kid"
    assert (judged / "grid.png").is_file()


def test_equal_weights_get_equal_scores(judged: Path) -> None:
    table = pd.read_parquet(judged / "scores.parquet").set_index(["measure", "prompt", "seed"]).sort_index()
    anchor, incumbent = (table[table["model"] == who]["value"] for who in ("anchor", "incumbent"))
    pd.testing.assert_series_equal(anchor, incumbent)
    assert not anchor.equals(table[table["model"] == "candidate"]["value"])


def test_features_of_sets_are_kept_for_the_gate(judged: Path) -> None:
    assert said(judged)["sets"] == digest_path(judged / "sets.safetensors")
    sets = read_sets(judged / "sets.safetensors")
    (kid,) = sets.measures
    assert (kid.measure, kid.kernel.name) == ("realism/avatars-kid", "polynomial")
    assert {who: len(rows) for who, rows in kid.features.items()} == {
        **dict.fromkeys(MODELS, 6),
        "references": 200,
    }
    assert said(judged)["reported"]["avatars-kid"].keys() == set(MODELS)


def test_the_gate_reads_what_evaluate_wrote(judged: Path) -> None:
    gate = read_configuration(AVATARS / "retrain.yaml").gate
    copies = gate.constraints["copies of training pictures"].model_copy(update={"margin": 1.0})
    few = {"minimum_prompts": 2, "slices": {}, "constraints": {"copies": copies}}
    margins = {"alignment": 1.0, "realism": 2.0, "aesthetics": 18.0}
    wide = {"margins": margins, "ranges": {"aesthetics": (-9.0, 9.0)}}
    ruling = decide(read_scores(judged)[0], gate.model_copy(update={**few, **wide}))
    assert ruling.decision != "invalid", ruling.reasons
    assert {*AXES, "memorisation"} == {figure.measure for figure in ruling.figures}


def test_memorisation_says_what_it_compared(judged: Path) -> None:
    facts = said(judged)["memorisation"]
    assert (facts["training"], facts["heldout"]) == (40, 400) and facts["distance"] > 0
    table = pd.read_parquet(judged / "scores.parquet")
    rows = table[(table["measure"] == "memorisation") & (table["model"] == "candidate")]
    assert set(rows["value"]) <= {0.0, -1.0} and -rows["value"].mean() == pytest.approx(facts["candidate"])


def test_verbatim_training_pictures_are_all_found(small_set: Path, validated: Path, tmp_path: Path) -> None:
    judge = Judge(load_scorers([ScorerSettings(**ALL[4])]), read_evaluation_set(str(small_set)), validated)
    copies = sorted((AVATARS / "data" / "new").glob("*.png"))
    listed = set(pd.read_parquet(validated / "manifest.parquet")["file_name"])
    judge.score("candidate", [path for path in copies if path.name in listed][:6])
    judge.score("incumbent", sorted((small_set / "references").iterdir())[:6])
    facts = judge.finish(tmp_path)["memorisation"]
    assert facts["candidate"] == 1.0 and facts["incumbent"] < 0.5


def test_references_are_read_whatever_their_names_end_in_and_nothing_else_passes(
    small_set: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(small_set, tmp_path / "set")
    Image.new("RGB", (8, 8)).save(root / "references" / "zz.jpg")
    assert len(read_evaluation_set(str(root)).references()) == 201
    Image.new("RGB", (8, 8)).save(root / "references" / "program.png", format="EPS")
    with pytest.raises(EvaluationError, match=r"program\.png cannot be read"):
        read_evaluation_set(str(root)).references()


def test_scores_are_fresh_and_samples_are_not(
    judged: Path, models: dict[str, Path], small_set: Path, state: Path, tmp_path: Path
) -> None:
    drawn = {file: file.stat().st_mtime_ns for file in state.rglob("*.png")}
    judge_models(settings(small_set, ALL[2]), models, tmp_path, state)
    assert {file: file.stat().st_mtime_ns for file in state.rglob("*.png")} == drawn
    again, before = pd.read_parquet(tmp_path / "scores.parquet"), pd.read_parquet(judged / "scores.parquet")
    assert set(again["measure"]) == {"aesthetics"}
    kept = before[(before["measure"] == "aesthetics") & (before["model"] != "anchor")].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, kept)


def _spoil(model: Path, target: Path) -> Path:
    """The model with a NaN in its first transformer weight."""
    shutil.copytree(model, target)
    place = target / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(place)
    next(iter(weights.values())).flatten()[0] = torch.nan
    save_file(weights, place, metadata={"format": "pt"})
    return target


def test_weights_that_draw_nan_make_the_scores_unusable(
    models: dict[str, Path], small_set: Path, tmp_path: Path
) -> None:
    spoilt = {**models, "candidate": _spoil(models["candidate"], tmp_path / "spoilt")}
    judge_models(settings(small_set), spoilt, tmp_path / "scores", tmp_path / "state")
    facts = said(tmp_path / "scores")
    assert "the candidate: this model draws NaN for the prompt" in facts["unusable"]
    assert "and seed 10000: its weights are broken" in facts["unusable"]
    assert facts["candidate"]["digest"] == digest_path(spoilt["candidate"])
    assert pd.read_parquet(tmp_path / "scores" / "scores.parquet").empty
    ruling = decide(read_scores(tmp_path / "scores")[0], read_configuration(AVATARS / "retrain.yaml").gate)
    assert ruling.decision == "invalid" and "draws NaN" in ruling.reasons[0]


def test_a_champion_that_no_longer_loads_is_named(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["incumbent"], broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    digest = digest_path(broken)
    others = {"incumbent": (str(broken), digest)}
    evaluate(settings(small_set), "unused", models["candidate"], others, tmp_path / "scores")
    assert said(tmp_path / "scores")["unusable"].startswith("the incumbent: the bundle at ")
    changed = {"incumbent": (str(broken), digest_path(models["incumbent"]))}
    evaluate(settings(small_set), "unused", models["candidate"], changed, tmp_path / "scores")
    facts = said(tmp_path / "scores")
    assert facts["unusable"].startswith("the incumbent: the weights at") and "digest" in facts["unusable"]
    assert facts["incumbent"]["digest"] == digest_path(models["incumbent"]), "the verdict is about whom it was to meet"


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        ({"scorer": "unheard-of", "weights": "x"}, "no scorer 'unheard-of' is installed"),
        ({"scorer": "avatars-realism", "weights": "nowhere"}, "does not load nowhere"),
        (ALL[4], "the pictures that the candidate was trained on"),
    ],
)
def test_a_scorer_that_cannot_work_makes_the_scores_unusable(
    scorer: dict[str, Any], reason: str, models: dict[str, Path], small_set: Path, state: Path, tmp_path: Path
) -> None:
    assert reason in judge_models(settings(small_set, scorer), models, tmp_path, state)["unusable"]


def test_an_evaluation_set_that_cannot_be_read_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    facts = judge_models(settings(tmp_path / "gone"), models, tmp_path / "scores", tmp_path)
    assert "the evaluation set at" in facts["unusable"] and facts["evaluation_set"]["prompts"] == {}


class Fussy:
    """Raises on one picture."""

    name, axis, higher_is_better, backbone, digest = "fussy", "realism", False, "none", "sha256:0"

    def score(self, images: Any, prompts: Any) -> dict[str, Any]:
        if any(image.size == (1, 1) for image in images):
            raise ZeroDivisionError("no")
        return {"realism": np.ones(len(images)), "realism/part": np.zeros(len(images))}


def test_the_picture_that_a_scorer_raises_on_is_named(small_set: Path) -> None:
    samples = read_evaluation_set(str(small_set)).samples
    images = [Image.new("RGB", (1, 1) if place == 4 else (8, 8)) for place in range(len(samples))]
    with pytest.raises(EvaluationError, match=r"fussy failed on prompt 003-\w+, seed 10003: ZeroDivisionError"):
        score_pictures(Fussy(), "realism", images, samples)


def test_a_second_scorer_of_an_axis_is_reported_beside_the_first(small_set: Path) -> None:
    class Other(Fussy):
        name = "other"

    assert measures([Fussy(), Other()]) == {"fussy": "realism", "other": "realism/other"}
    samples = read_evaluation_set(str(small_set)).samples
    images = [Image.new("RGB", (8, 8))] * len(samples)
    scores = score_pictures(Other(), "realism/other", images, samples)
    assert set(scores) == {"realism/other", "realism/other/part"}
    assert (scores["realism/other"] == -1).all(), "the sign is turned where lower is better"


def test_a_share_is_drawn_where_evaluate_finds_it(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    others = {"incumbent": (str(models["incumbent"]), digest_path(models["incumbent"]))}
    where = settings(small_set), "unused", models["candidate"], others
    for shard in (0, 1):
        assert draw_shard(*where, str(tmp_path / "state"), shard, 2) == ""
    drawn = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert len(drawn) == 12
    evaluate(*where, tmp_path / "scores", str(tmp_path / "state"))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "state").rglob("*.png")} == drawn
    with pytest.raises(EvaluationError, match="share a state folder"):
        draw_shard(*where, "", 0, 2)
    gone = {"incumbent": (str(tmp_path / "gone"), "sha256:0")}
    assert "nothing is at" in draw_shard(*where[:3], gone, str(tmp_path / "state"), 0, 2)


def test_each_decision_asks_other_prompts_with_other_seeds_evenly_over_their_attributes(tmp_path: Path) -> None:
    root = shutil.copytree(EVALUATION, tmp_path / "set")
    lines = [json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()]
    lines[7]["sealed"] = True
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {prompt.id: prompt for prompt in read_evaluation_set(str(root)).prompts}
    first, second = (read_evaluation_set(str(root), rotate=90, decision=decision) for decision in (1, 2))
    assert first.digest != second.digest and first.digest.startswith(read_evaluation_set(str(root)).digest)
    assert {p.id for p in first.prompts} != {p.id for p in second.prompts}
    for asked in (first, second):
        assert len({p.id for p in asked.prompts}) == len(asked.prompts) == 91
        assert all(len(p.seeds) == len(whole[p.id].seeds) for p in asked.prompts)
        assert [p.seeds == whole[p.id].seeds for p in asked.prompts].count(True) == 1, "the sealed one's"
        skins = [p.attributes["skin"] for p in asked.prompts]
        assert all(26 <= skins.count(skin) <= 34 for skin in set(skins))
    assert read_evaluation_set(str(root), rotate=90, decision=1) == first
