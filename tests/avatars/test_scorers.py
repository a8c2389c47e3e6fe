"""The scorers notice what they are for, at the bounds that were declared beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.avatars.acceptance import MODELS, OWNED, Acceptance, Asked, measure
from examples.avatars.portraits import VALUES
from examples.avatars.scorers import Aesthetics, Alignment, Realism, likeliest
from examples.avatars.splits import portraits

torch.set_num_threads(1)
CLASSES = {"alignment": Alignment, "realism": Realism, "aesthetics": Aesthetics}


@pytest.fixture(scope="module")
def acceptance() -> Acceptance:
    return measure()


OWNERS = [(axis, damage) for axis in OWNED for damage in OWNED[axis]]


@pytest.mark.parametrize(("axis", "damage"), OWNERS)
def test_an_axis_notices_its_damages(acceptance: Acceptance, axis: str, damage: str) -> None:
    assert acceptance.count == 200
    assert acceptance.auc[axis, damage][1] >= 0.9
    assert acceptance.monotone(axis, damage), acceptance.means[axis, damage]


@pytest.mark.parametrize("toggle", ["glasses", "beard"])
@pytest.mark.parametrize("axis", ["realism", "aesthetics"])
def test_toggles_are_a_matter_of_taste(acceptance: Acceptance, axis: str, toggle: str) -> None:
    assert abs(acceptance.toggles[axis, toggle]) < 0.1


def test_aesthetics_agrees_with_its_rule(acceptance: Acceptance) -> None:
    assert acceptance.agreement >= 0.85


@pytest.mark.parametrize("axis", CLASSES)
def test_scorers_keep_the_contract(axis: str) -> None:
    scorer = CLASSES[axis](str(MODELS / "scorers" / f"{axis}.safetensors"))
    assert (scorer.axis, scorer.higher_is_better) == (axis, True)
    assert scorer.digest.startswith("sha256:") and len(scorer.digest) == 71
    shown = portraits("heldout")[:5]
    images, asked = [portrait.draw() for portrait in shown], [Asked.of(portrait) for portrait in shown]
    first, second = scorer.score(images, asked), scorer.score(images, asked)
    assert first[axis].shape == (5,) and first[axis].dtype == np.float64
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert scorer.score([], [])[axis].shape == (0,)
    with pytest.raises(ValueError, match="each picture needs its own"):
        scorer.score(images, asked[:-1])


def test_what_is_not_mentioned_is_asked_to_be_absent() -> None:
    scorer = Alignment(str(MODELS / "scorers" / "alignment.safetensors"))
    wearer = next(portrait for portrait in portraits("heldout") if portrait.glasses and not portrait.beard)
    unasked = {name: value for name, value in wearer.attributes().items() if name not in ("glasses", "beard")}
    scores = scorer.score([wearer.draw()], [Asked("no glasses mentioned", unasked)])
    assert set(scores) == {"alignment", *(f"alignment/{name}" for name in VALUES)}
    assert scores["alignment/glasses"][0] < 0.1 and scores["alignment/beard"][0] > 0.9


def test_a_missing_or_foreign_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="tiny-models"):
        Alignment("nowhere.safetensors")
    with pytest.raises(ValueError, match="does not hold a TasteNet"):
        Aesthetics(str(MODELS / "scorers" / "alignment.safetensors"))


def test_the_likeliest_portraits_are_ordered() -> None:
    rows = {name: np.full(len(values), 0.01) for name, values in VALUES.items()}
    for values in rows.values():
        values[0] = 1.0
    rows["mouth"][2], rows["hair"][3] = 0.5, 0.25
    first, second, third = likeliest(rows)
    assert (first.mouth, second.mouth, third.hair) == ("grimace", "serious", "curly")
    assert len(likeliest({name: np.eye(len(values))[0] for name, values in VALUES.items()})) == 1
