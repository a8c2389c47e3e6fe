"""Drawings are a function of their attributes, and captions say exactly what is drawn."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from examples.avatars.portraits import CORE, VALUES, Portrait, caption, cores, draw

PERSON = Portrait("light", "bob", "red", "blue", "mint", "smile")


def digest(portrait: Portrait) -> str:
    return hashlib.sha256(portrait.draw().tobytes()).hexdigest()


def test_a_drawing_is_64_by_64_and_rgb() -> None:
    image = PERSON.draw()
    assert (image.size, image.mode) == ((64, 64), "RGB")


def test_one_tuple_draws_one_picture_in_any_process() -> None:
    code = (
        "import hashlib; from examples.avatars.portraits import Portrait; "
        "p = Portrait('light', 'bob', 'red', 'blue', 'mint', 'smile'); "
        "print(hashlib.sha256(p.draw().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert digest(PERSON) == digest(PERSON) == other.strip()


def test_changing_any_attribute_changes_the_picture_visibly() -> None:
    before = np.asarray(PERSON.draw(), dtype=float)
    for name, values in VALUES.items():
        for value in values:
            if value != getattr(PERSON, name):
                after = np.asarray(draw({**PERSON.attributes(), name: value}), dtype=float)
                changed = (np.abs(after - before).max(axis=2) > 40).sum()
                assert changed >= 20, f"{name}={value} changes only {changed} pixels"


def test_captions_say_what_is_there_and_nothing_that_is_absent() -> None:
    assert PERSON.caption() == "a portrait, light skin, red bob hair, smiling mouth, blue shirt, mint background"
    both = caption({**PERSON.attributes(), "glasses": True, "beard": True})
    assert both == ("a portrait, light skin, red bob hair, smiling mouth, glasses, beard, blue shirt, mint background")


def test_a_caption_names_one_tuple_only() -> None:
    every = list(cores())
    assert len({portrait.caption() for portrait in every}) == len(every)
    assert 4 * len(every) >= 50_000


def test_classes_and_attributes_lead_back_to_the_portrait() -> None:
    both = Portrait.of({**PERSON.attributes(), "glasses": True})
    assert Portrait.of_classes(both.classes()) == both == Portrait.of(both.attributes())
    assert set(CORE) < set(VALUES)


@pytest.mark.parametrize("wrong", [{"hair": "wig"}, {"hat": "bowler"}])
def test_what_cannot_be_drawn_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        draw({**PERSON.attributes(), **wrong})
