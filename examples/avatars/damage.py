"""Ways to spoil a picture, each at severity 1, 2 or 3: what the scorers have to notice.

Pictures are arrays (64, 64, 3), float64 in [0, 1]. Everything is deterministic, given the generator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Array = np.ndarray
Damage = Callable[[Array, int, np.random.Generator, Array], Array]
"""(picture, severity, generator, another picture) to the spoiled picture."""

MUD = np.array([0.42, 0.37, 0.30])
OFF_PALETTE = np.array([0.45, 0.48, 0.10])
MOUTH_BOX = (slice(39, 52), slice(20, 44))
"""Rows and columns that hold the mouth."""


def as_array(image: Image.Image) -> Array:
    """A picture as (H, W, 3) float64 in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def as_image(array: Array) -> Image.Image:
    """An array in [0, 1] as an RGB picture."""
    return Image.fromarray((array.clip(0, 1) * 255).round().astype(np.uint8))


def blur(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """A Gaussian blur of 0.6, 1 or 1.6 pixels."""
    return as_array(as_image(x).filter(ImageFilter.GaussianBlur((0.6, 1.0, 1.6)[severity - 1])))


def noise(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """Gaussian noise, standard deviation 0.04, 0.08 or 0.15."""
    return (x + rng.normal(0, (0.04, 0.08, 0.15)[severity - 1], x.shape)).clip(0, 1)


def off_palette(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """The background's colour goes a quarter, half or four fifths of the way to an olive it never has."""
    share = (0.25, 0.5, 0.8)[severity - 1]
    background = np.abs(x - x[0, 0]).max(axis=2, keepdims=True) < 0.02
    return np.where(background, (1 - share) * x + share * OFF_PALETTE, x)


def halves(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """The right 16, 24 or 32 columns come from another picture."""
    width = (16, 24, 32)[severity - 1]
    return np.concatenate([x[:, :-width], other[:, -width:]], axis=1)


def mouth(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """The mouth is displaced sideways by 2, 4 or 6 pixels; what it leaves is filled from beside it."""
    offset = (2, 4, 6)[severity - 1]
    rows, columns = MOUTH_BOX
    spoiled = x.copy()
    spoiled[rows, columns] = np.repeat(x[rows, columns.start : columns.start + 1], 24, axis=1)
    spoiled[rows, columns.start + offset : columns.stop] = x[rows, columns.start : columns.stop - offset]
    return spoiled


def muddy(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """Everything goes a fifth, two fifths or three fifths of the way to a brownish grey."""
    share = (0.2, 0.4, 0.6)[severity - 1]
    return (1 - share) * x + share * MUD


def ragged(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """A share of 0.2, 0.4 or 0.7 of the pixels takes the colour of a pixel at most 2 away: contours fray."""
    moved = rng.random(x.shape[:2]) < (0.2, 0.4, 0.7)[severity - 1]
    place = np.indices(x.shape[:2]) + moved * rng.integers(-2, 3, (2, *x.shape[:2]))
    rows, columns = place.clip(0, np.array(x.shape[:2])[:, None, None] - 1)
    spoiled: Array = x[rows, columns]
    return spoiled


def asymmetric(x: Array, severity: int, rng: np.random.Generator, other: Array) -> Array:
    """The right half slides down by 3, 6 or 9 pixels."""
    offset = (3, 6, 9)[severity - 1]
    spoiled = x.copy()
    spoiled[offset:, 32:] = x[:-offset, 32:]
    spoiled[:offset, 32:] = x[:1, 32:]
    return spoiled


REALISM: dict[str, Damage] = {
    "blur": blur,
    "noise": noise,
    "off-palette colour": off_palette,
    "mismatched halves": halves,
    "displaced mouth": mouth,
}
AESTHETICS: dict[str, Damage] = {"muddy colour": muddy, "ragged contours": ragged, "asymmetry": asymmetric}
EVERY: dict[str, Damage] = {**REALISM, **AESTHETICS}
