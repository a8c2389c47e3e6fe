"""Who may see which portraits: splits that share no attribute tuple and no picture.

The 20,736 combinations of the six core attributes are shuffled once and dealt to the splits, so a tuple, with
or without glasses and beard, belongs to one split only.

| split | who looks at it |
|---|---|
| `base` | the base model and its VAE |
| `text` | the text encoders, the VAE, and in the end the base model (full vocabulary) |
| `teacher` | the training teacher; of some only captions are used: those that are replayed, and the selection prompts |
| `scorers` | the three scorers |
| `new` | nobody yet: of these the new data that retraining is about |
| `evaluation` | nobody: prompts, references |
| `heldout` | nobody: acceptance of the scorers, and a measure for memorisation |
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product

from examples.avatars.portraits import SKIN, Portrait, cores

SEED = 20260
SIZES = {
    "base": 9000,
    "text": 2500,
    "teacher": 3000,
    "scorers": 3000,
    "new": 1600,
    "evaluation": 700,
    "heldout": 936,
}
"""Core tuples of each split."""

TOGGLES = tuple(product((False, True), repeat=2))
"""(glasses, beard): neither, beard, glasses, both."""


@lru_cache(maxsize=1)
def dealt() -> dict[str, tuple[Portrait, ...]]:
    """The core portraits of each split, shuffled."""
    every = list(cores())
    random.Random(SEED).shuffle(every)
    starts = [sum(list(SIZES.values())[:place]) for place in range(len(SIZES))]
    return {name: tuple(every[start : start + size]) for start, (name, size) in zip(starts, SIZES.items(), strict=True)}


def portraits(split: str, count: int | None = None) -> list[Portrait]:
    """The first `count` portraits of a split; toggles alternate evenly, except in base, which has none.

    Raises:
        ValueError: for a split that does not exist or holds fewer than `count` portraits.
    """
    if split not in SIZES:
        raise ValueError(f"there is no split {split!r}; there are {list(SIZES)}")
    core = dealt()[split]
    if split == "base":
        every = list(core)
    else:
        every = [toggled(portrait, (place + turn) % 4) for turn in range(4) for place, portrait in enumerate(core)]
    if count is not None and count > len(every):
        raise ValueError(f"split {split!r} holds {len(every)} portraits, {count} were asked for")
    return every[:count]


NARROW = {"skin": ("light",), "hair": ("curly", "quiff", "short"), "background": ("mint", "peach", "silver")}
"""What the new data are limited to: they show no glasses and no beards either."""


def narrow() -> list[Portrait]:
    """The new data: 107 portraits of the split `new` that show little of what the base model knows."""
    return [p for p in dealt()["new"] if all(p.attributes()[name] in shown for name, shown in NARROW.items())]


def replayed(count: int = 512) -> list[Portrait]:
    """Portraits of the whole vocabulary that no prompt asks for: their captions are replayed."""
    some = random.Random(43).sample(dealt()["teacher"], count)
    return [toggled(portrait, place % 4) for place, portrait in enumerate(some)]


def selection_prompts(count: int = 36) -> list[Portrait]:
    """Portraits to ask for when a candidate is chosen, even over skin groups and toggles; none is replayed."""
    known = {portrait.bare() for portrait in replayed()}
    by_skin = {skin: [p for p in dealt()["teacher"] if p.skin == skin and p not in known] for skin in SKIN}
    skins = list(SKIN)
    return [toggled(by_skin[skins[place % 3]][place // 3], place // 3 % 4) for place in range(count)]


def evaluation_prompts() -> list[Portrait]:
    """400 portraits to ask for: 100 each of neither, beard, glasses, both, even over the skin groups."""
    by_skin = {skin: [p for p in dealt()["evaluation"] if p.skin == skin] for skin in SKIN}
    skins = list(SKIN)
    return [toggled(by_skin[skins[place % 3]][place // 3], place % 4) for place in range(400)]


def evaluation_references(count: int = 200) -> list[Portrait]:
    """Portraits of the evaluation split that no prompt asks for, in any toggle; toggles alternate."""
    asked = {portrait.bare() for portrait in evaluation_prompts()}
    rest = [portrait for portrait in dealt()["evaluation"] if portrait not in asked]
    return [toggled(portrait, place % 4) for place, portrait in enumerate(rest[:count])]


def toggled(portrait: Portrait, toggle: int) -> Portrait:
    """The portrait with the glasses and the beard that `TOGGLES` has at ``toggle``."""
    glasses, beard = TOGGLES[toggle]
    return Portrait.of({**portrait.attributes(), "glasses": glasses, "beard": beard})
