"""Selection: the rule on numbers made by hand, and what comes of a real run with the avatars' scorers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.evaluate.evaluation_set import EvaluationError, read_evaluation_set
from components.evaluate.scoring import load_scorers, score_pictures
from components.evaluate.settings import ScorerSettings
from components.fine_tune.candidate import train_candidate
from components.fine_tune.selection import Point, Selection, choose, points, product, weights_at
from components.plan.keys import training_key
from examples.avatars.data import EVALUATION
from lineage.digests import digest_file, digest_path
from tests.runs import AVATARS
from tests.training.conftest import World
from tests.training.test_lora import ADAPTER, WEIGHTS
from training.errors import TrainingError
from training.families.drawing import Drawer
from training.settings import AXES, LoraSettings, TrainingSettings
from training.train.job import MARKS, mark_name

LOOSE = {"alignment": 1.0, "realism": 1.0, "aesthetics": 10.0}
SCORERS = [
    {"scorer": f"avatars-{name}", "weights": str(AVATARS / "models" / "scorers" / f"{file}.safetensors")}
    for name, file in (("memorisation", "realism"), *((axis, axis) for axis in AXES), ("kid", "realism"))
]


@pytest.fixture(scope="module")
def selection_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the avatars' prompts, one of them with two seeds, drawn small and fast."""
    root = tmp_path_factory.mktemp("set") / "selection"
    root.mkdir()
    asked = [json.loads(line) for line in (EVALUATION / "prompts.jsonl").read_text().splitlines()[:3]]
    for place, row in enumerate(asked):
        row["seeds"] = [place, *([7] if place == 0 else [])]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    sampling = {"num_inference_steps": 2, "guidance_scale": 2.0, "max_sequence_length": 1, "height": 32, "width": 32}
    (root / "set.json").write_text(json.dumps({"name": "selection", "version": 1, **sampling}))
    return root


def _settings(world: World, selection_set: Path, **changes: Any) -> TrainingSettings:
    selection = {"selection_set": selection_set, "scorers": SCORERS, "margins": LOOSE, "batch_size": 3, "marks": 3}
    selection |= changes.pop("selection", {})
    common = {"processes": 1, "steps": 6, "learning_rate": 2e-2, "ema_decay": 0.1, "selection": selection}
    return world.settings(**(common | changes))


@dataclass(frozen=True)
class Chosen:
    """What the step left."""

    settings: TrainingSettings
    place: Path
    facts: dict[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = self.facts["selection"]
        return told


def _train(world: World, settings: TrainingSettings, place: Path, state: str = "") -> Chosen:
    outputs = (place / "candidate", place / "curves", place / "record")
    place.mkdir()
    facts = train_candidate(settings, None, "run-1", world.validated, world.features, *outputs, None, state)
    return Chosen(settings, place, facts)


@pytest.fixture(scope="module")
def chosen(world: World, selection_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    place = tmp_path_factory.mktemp("chosen")
    return _train(world, _settings(world, selection_set), place / "step", str(place / "state"))


@pytest.fixture(scope="module")
def marks(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Marks of a run of six steps: the base model's weights, moved ever further in the same direction."""
    folder = tmp_path_factory.mktemp("made") / MARKS
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    base = {n: t for n, t in load_file(world.base / WEIGHTS).items() if n != "pos_embed.pos_embed"}
    moves = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    for step in (1, 3, 6):
        save_file({name: t + 0.05 * step * moves[name] for name, t in base.items()}, folder / mark_name(step))
    return folder


def _means(alignment: float, realism: float, aesthetics: float) -> dict[str, float]:
    return {"alignment": alignment, "realism": realism, "aesthetics": aesthetics}


BASE, MARGINS = _means(0.5, -0.25, 1.0), {**_means(0.25, 0.125, 0.5), "realism/kid": 9.0}
LATE, EARLY, MIX = Point(8, 1.0), Point(4, 1.0), Point(8, 0.25)


@pytest.mark.parametrize(
    ("compared", "which", "within"),
    [
        pytest.param({EARLY: _means(0.75, -0.25, 1), LATE: BASE}, EARLY, True, id="the larger product"),
        pytest.param({EARLY: _means(1, 0, 1), MIX: _means(9, 9, 0.5), LATE: _means(9, -0.375, 9)}, EARLY, True,
                     id="a point at the end of a margin is out, whatever else it gains"),
        pytest.param({EARLY: _means(0.25, -9, 0), LATE: _means(9, -9, 0)}, LATE, False,
                     id="two losses that multiply to a gain are none"),
        pytest.param({EARLY: BASE, MIX: BASE, LATE: BASE}, LATE, True, id="of equals the later step"),
        pytest.param({LATE: _means(0, 0, 0), MIX: BASE, EARLY: BASE}, MIX, True, id="and a mix belongs to its step"),
        pytest.param({LATE: _means(0, 9, 9), MIX: _means(9, -9, 9), EARLY: _means(0.25, 9, 9)}, LATE, False,
                     id="none is within the margins: the last step"),
    ],
)  # fmt: skip
def test_the_rule(compared: Mapping[Point, dict[str, float]], which: Point, within: bool) -> None:
    products = {point: product(means, BASE, MARGINS) for point, means in compared.items()}
    assert (choose(products), products[which] > 0) == (which, within)
    assert choose(dict(reversed(products.items()))) == which, "in whatever order they come"


def test_a_product_is_of_gains_over_the_base_model_less_its_margins() -> None:
    assert product(_means(0.75, -0.125, 1.5), BASE, MARGINS) == 0.5 * 0.25 * 1.0
    scaled = [
        {axis: 8 * value for axis, value in means.items()} for means in (_means(0.75, -0.125, 1.5), BASE, MARGINS)
    ]
    assert product(*scaled) == 8**3 * 0.125, "units change all products alike"


def test_points_are_marks_and_mixes_of_the_last(world: World, selection_set: Path) -> None:
    settings = _settings(world, selection_set, selection={"mixes": (0.5, 0.125)})
    assert [point.name for point in points(settings)] == [
        "step 1",
        "step 3",
        "12.5 % of step 6",
        "50 % of step 6",
        "step 6",
    ]
    assert max(points(settings)) == Point(6, 1.0)


def test_a_mix_lies_between_base_model_and_last_step(world: World, selection_set: Path, marks: Path) -> None:
    settings = _settings(world, selection_set)
    base, last = load_file(world.base / WEIGHTS), load_file(marks / mark_name(6))
    mixed = weights_at(settings, marks, Point(6, 0.25))
    assert mixed.keys() == last.keys()
    for name, tensor in mixed.items():
        assert torch.allclose(tensor, 0.75 * base[name] + 0.25 * last[name], atol=1e-6), name
    assert all(torch.equal(t, last[name]) for name, t in weights_at(settings, marks, Point(6, 1.0)).items())


def test_the_record_tells_the_choice_and_why(world: World, selection_set: Path, chosen: Chosen) -> None:
    assert json.loads((chosen.place / "record").read_text()) == chosen.facts
    assert chosen.facts["candidate"] == digest_path(chosen.place / "candidate")
    told, margins = chosen.told, chosen.settings.selection.margins
    assert (told["selection_set"], told["margins"]) == (digest_path(selection_set), LOOSE)
    assert told["scorers"]["realism"]["digest"] == digest_file(AVATARS / "models" / "scorers" / "realism.safetensors")
    assert list(told["scorers"]) == list(AXES), "those that decide an axis, and no other"
    names = ["step 1", "step 3", "25 % of step 6", "50 % of step 6", "75 % of step 6", "step 6"]
    assert [point["name"] for point in told["points"]] == names
    for point in told["points"]:
        gains = [point[axis] - told["base_model"][axis] + margins[axis] for axis in AXES]
        assert point["product"] == pytest.approx(np.prod(gains), rel=1e-12) and min(gains) > 0
    assert len({point["product"] for point in told["points"]}) == len(names), "each draws otherwise"
    assert told["chosen"] == max(told["points"], key=lambda point: point["product"])["name"] and told["within_margins"]
    assert told["seconds"] > 0 and told["rule"].startswith("the largest product")
    assert chosen.facts["marks"].keys() == {mark_name(step) for step in (1, 3, 6)}


def test_only_the_outputs_are_left(chosen: Chosen) -> None:
    assert {path.name for path in chosen.place.iterdir()} == {"candidate", "curves", "curves.jsonl", "record"}
    assert not list((chosen.place.parent / "state" / "fine-tune").iterdir()), (
        "checkpoints and marks have done their work"
    )


def test_the_candidate_is_what_was_scored(selection_set: Path, chosen: Chosen) -> None:
    """Its pictures, drawn by whoever loads it, have the scores that it was chosen for."""
    asked = read_evaluation_set(str(selection_set))
    scorer = load_scorers([ScorerSettings.model_validate(SCORERS[1])])[0]
    for model, means in (
        (chosen.place / "candidate", next(p for p in chosen.told["points"] if p["name"] == chosen.told["chosen"])),
        (chosen.settings.base_model, chosen.told["base_model"]),
    ):
        drawer, pictures = Drawer(model), []
        for batch in (asked.samples[:3], asked.samples[3:]):
            texts, seeds = [prompt.text for prompt, _ in batch], [seed for _, seed in batch]
            pictures += drawer.draw(texts, seeds, asked.description.sampling.model_dump())
        scores = score_pictures(scorer, "alignment", pictures, asked.samples)  # type: ignore[arg-type]
        assert scores["alignment"].mean() == means["alignment"]


def test_the_same_settings_give_the_same_candidate_again(world: World, chosen: Chosen, tmp_path: Path) -> None:
    settings = TrainingSettings.model_validate(json.loads(json.dumps(chosen.facts["settings"])))
    again = _train(world, settings, tmp_path / "step")
    unlike = {"seconds"}
    assert {k: v for k, v in again.told.items() if k not in unlike} == {
        k: v for k, v in chosen.told.items() if k not in unlike
    }
    assert again.facts["candidate"] == chosen.facts["candidate"]


def test_without_a_selection_set_all_is_as_it_was(world: World, chosen: Chosen, tmp_path: Path) -> None:
    plain = _train(
        world, chosen.settings.model_copy(update={"selection": world.settings().selection}), tmp_path / "step"
    )
    assert not {"selection", "marks"} & json.loads((tmp_path / "step" / "record").read_text()).keys()
    assert (plain.facts["seed"], plain.facts["features"]) == (chosen.facts["seed"], chosen.facts["features"])
    assert {path.name for path in (tmp_path / "step").iterdir()} == {
        "candidate",
        "curves",
        "curves.jsonl",
        "record",
        "training.json",
    }


def test_where_none_is_within_the_margins_the_last_step_stays(
    world: World, selection_set: Path, marks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = _settings(world, selection_set, selection={"margins": dict.fromkeys(AXES, 1e-9)})
    told = Selection(strict).select(marks, tmp_path / "candidate")
    assert not any(point["product"] for point in told["points"]), "noise gains nothing"
    assert (told["chosen"], told["within_margins"]) == ("step 6", False)
    assert (
        "chosen: nothing is within the margins: step 6 of 6; in parentheses the base model: " in capsys.readouterr().out
    )
    exported, last = load_file(tmp_path / "candidate" / WEIGHTS), load_file(marks / mark_name(6))
    assert all(torch.equal(exported[name], tensor) for name, tensor in last.items())


def test_a_mix_of_an_adapter_is_one_that_draws_as_it_was_scored(
    world: World, selection_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mix is chosen; merged weights and the adapter beside them say the same."""
    half = Point(6, 0.5)
    monkeypatch.setattr("components.fine_tune.selection.choose", lambda products: half)
    settings = _settings(
        world, selection_set, method="lora", lora=LoraSettings(rank=4, alpha=12), selection={"marks": 1}
    )
    done = _train(world, settings, tmp_path / "step")
    assert done.told["chosen"] == "50 % of step 6"
    base, merged = load_file(world.base / WEIGHTS), load_file(done.place / "candidate" / WEIGHTS)
    adapter = load_file(done.place / "candidate" / ADAPTER)
    plain = _train(world, settings.model_copy(update={"selection": world.settings().selection}), tmp_path / "plain")
    last = load_file(plain.place / "candidate" / WEIGHTS)
    moved = [name for name in base if not torch.equal(base[name], last[name])]
    assert moved
    for name in moved:
        layer = f"transformer.{name.removesuffix('.weight')}.lora_"
        change = 3 * adapter[f"{layer}B.weight"] @ adapter[f"{layer}A.weight"]
        assert torch.allclose(merged[name], base[name] + change, atol=1e-6)
        assert torch.allclose(merged[name], (base[name] + last[name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        (SCORERS[:3], "no scorer of training.selection judges single pictures for aesthetics; put one"),
        ([SCORERS[4], *SCORERS[:4]], "judges single pictures for realism"),
        ([], "for alignment, realism, aesthetics"),
        ([*SCORERS, {"scorer": "avatars-taste", "weights": "none"}], "no scorer 'avatars-taste' is installed"),
    ],
    ids=["lacking", "a distance of sets decides", "none", "unknown"],
)
def test_scorers_that_cannot_choose_are_refused_before_training(
    world: World, selection_set: Path, tmp_path: Path, scorers: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        _train(world, _settings(world, selection_set, selection={"scorers": scorers}), tmp_path / "step")
    assert not list((tmp_path / "step").iterdir()), "nothing was trained"


def test_a_malformed_selection_set_is_refused_before_training(
    world: World, selection_set: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(selection_set, tmp_path / "set")
    (broken / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(EvaluationError, match=r"prompts\.jsonl is malformed in line 1"):
        _train(world, _settings(world, broken), tmp_path / "step")
    assert not list((tmp_path / "step").iterdir())


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"alignment": 0.1, "realism/kid": 0.1}, "no margin for realism, aesthetics; give each axis one"),
        ({**LOOSE, "realism": 0.0}, "greater than 0"),
        ({**LOOSE, "realism": float("nan")}, "finite number"),
    ],
)
def test_margins_that_cannot_choose_are_refused(
    world: World, selection_set: Path, margins: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _settings(world, selection_set, selection={"margins": margins})


@pytest.mark.parametrize("given", [None, "nan", "other", "raise"])
def test_a_scorer_that_fails_chooses_nothing(
    world: World, selection_set: Path, marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    from examples.avatars.scorers import Realism

    score = Realism.score

    def failing(self: Realism, images: Any, prompts: Any) -> Any:
        scores = score(self, images, prompts)
        if given == "raise":
            raise ValueError("the scorer is broken")
        if given == "nan":
            scores["realism"][1] = np.nan
        return {"realism/other": scores["realism"]} if given == "other" else scores

    monkeypatch.setattr(Realism, "score", failing)
    selection = Selection(_settings(world, selection_set, selection={"mixes": ()}))
    if given is None:
        assert selection.select(marks, tmp_path / "candidate")["chosen"]
        return
    with pytest.raises(
        EvaluationError, match=r"failed on prompt 000-neither, seed 0|no finite realism for each picture of the base"
    ):
        selection.select(marks, tmp_path / "candidate")
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("step", [1, 6])
def test_weights_that_are_not_finite_are_refused(
    world: World, selection_set: Path, marks: Path, tmp_path: Path, step: int
) -> None:
    shutil.copytree(marks, tmp_path / MARKS)
    weights = load_file(marks / mark_name(step))
    weights["proj_out.bias"][0] = torch.nan
    save_file(weights, tmp_path / MARKS / mark_name(step))
    named = "step 1" if step == 1 else "25 % of step 6"
    with pytest.raises(TrainingError, match=f"{named} has weights that are not finite; lower the learning rate"):
        Selection(_settings(world, selection_set)).select(tmp_path / MARKS, tmp_path / "candidate")


def test_what_decides_the_choice_makes_another_candidate(
    world: World, selection_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(settings: TrainingSettings) -> str:
        return training_key("sha256:snapshot", {}, settings.deciding())

    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    scorers = [{"scorer": "avatars-realism", "weights": str(weights)}]
    copied = shutil.copytree(selection_set, tmp_path / "set")
    settings = _settings(world, copied, selection={"scorers": scorers})
    first = key(settings)
    assert key(_settings(world, selection_set, selection={"scorers": scorers})) == first, "wherever the set lies"
    others = [key(_settings(world, copied, selection={"scorers": scorers} | change)) for change in (
        {"margins": {**LOOSE, "realism": 2.0}}, {"mixes": (0.5,)}, {"marks": 2}, {"batch_size": 4},
        {"drawing": {"precision": "bfloat16"}}, {"selection_set": None},
    )]  # fmt: skip
    weights.write_bytes(b"2")
    others.append(key(settings))
    (copied / "prompts.jsonl").write_text((copied / "prompts.jsonl").read_text().replace("smiling", "serious"))
    others.append(key(settings))
    assert len({first, *others}) == 1 + len(others)


def test_code_of_judges_counts_where_they_choose_and_nowhere_else(
    world: World, selection_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("components.plan.keys.code_digest", lambda *packages: asked.extend(packages) or "sha256:code")
    training_key("sha256:snapshot", {}, _settings(world, selection_set).deciding())
    assert {"components.evaluate", "examples.avatars", "training.train"} <= {*asked}
    asked.clear()
    off = _settings(world, selection_set, selection={"selection_set": None})
    assert "selection" not in off.deciding()
    training_key("sha256:snapshot", {}, off.deciding())
    assert not {"components.evaluate", "examples.avatars"} & {*asked} and "training.train" in asked
