"""Where in a picture a phrase is true: exact, because a drawing can be drawn again with the one thing changed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from examples.avatars.portraits import VALUES, Portrait

CHANGED = {
    "skin": "skin",
    "hair": "hair_color",
    "mouth": "mouth",
    "glasses": "glasses",
    "beard": "beard",
    "shirt": "clothing_color",
    "background": "background",
}
"""A phrase's last word to the attribute whose change shows where it is."""


def region(portrait: Portrait, phrase: str, grid: int = 8) -> torch.Tensor:
    """The patches that a phrase is about, (grid * grid,) bool: a tenth of their pixels change with it."""
    return _region(portrait.hair, portrait.mouth, portrait.glasses, portrait.beard, phrase.split()[-1], grid)


@cache
def _region(hair: str, mouth: str, glasses: bool, beard: bool, thing: str, grid: int) -> torch.Tensor:
    # Colours do not move anything, so one choice of them stands for all.
    attributes = {
        "skin": "light",
        "hair": hair,
        "hair_color": "brown",
        "clothing_color": "blue",
        "background": "mint",
        "mouth": mouth,
        "glasses": glasses,
        "beard": beard and thing != "hair",
    }
    before = np.asarray(Portrait.of(attributes).draw(), dtype=float)
    name = CHANGED[thing]
    changed = np.zeros(before[..., 0].shape, dtype=bool)
    for value in VALUES[name]:
        after = np.asarray(Portrait.of({**attributes, name: value}).draw(), dtype=float)
        changed |= np.amax(np.abs(after - before), axis=-1) > 25
    edge = len(changed) // grid
    blocks = torch.from_numpy(changed).float().reshape(grid, edge, grid, edge)
    return (blocks.mean(dim=(1, 3)) >= 0.1).flatten()
