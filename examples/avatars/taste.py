"""The declared taste: a published rule, not a human's judgement.

    taste = 2.8 harmony + 0.3 contrast + 2.3 contours + 2 symmetry, each term in [0, 1]

In CIE L*a*b* (D65), with chroma C, hue h and lightness L:

- *harmony*: hues agree or oppose each other, colours are vivid, and the lightest tone is light; muddy colours lose.
  0.2 |sum C exp(2ih)| / sum C + 0.2 min(1, mean C / 30) + 0.6 (L99.5 - 50) / 40, the last within [0, 1], where
  L99.5 is the 99.5th percentile of L.
- *contrast*: the figure stands out from the ground, and tones reach far. 0.5 min(1, |mean L of the figure - mean L
  of the ground| / 15) + 0.5 min(1, (L98 - L2) / 60); the ground is the two upper corners, the figure the middle.
- *contours*: 1 - 25 (mean distance of a picture from its own 3 x 3 median), at least 0; frayed edges lose.
- *symmetry*: 1 - 5 (mean distance of a picture from its mirror image), at least 0.

Glasses and a beard are a matter of taste that this taste leaves open: the rule is always taken on the twin without
them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from examples.avatars.damage import Array, as_array, as_image

WEIGHTS = {"harmony": 2.8, "contrast": 0.3, "contours": 2.3, "symmetry": 2.0}


def terms(x: Array) -> dict[str, float]:
    """The four terms of a picture (64, 64, 3) in [0, 1]."""
    lab = _lab(x)
    lightness = lab[..., 0]
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.arctan2(lab[..., 2], lab[..., 1])
    agreement = np.abs((chroma * np.exp(2j * hue)).sum()) / max(chroma.sum(), 1e-9)
    low, high, lightest = np.percentile(lightness, (2, 98, 99.5))
    ground = np.concatenate([lightness[:8, :6].ravel(), lightness[:8, -6:].ravel()]).mean()
    figure = lightness[8:, 16:48].mean()
    median = as_array(as_image(x).filter(ImageFilter.MedianFilter(3)))
    light = float(np.clip((lightest - 50) / 40, 0, 1))
    return {
        "harmony": float(0.2 * agreement + 0.2 * min(1.0, chroma.mean() / 30) + 0.6 * light),
        "contrast": float(0.5 * min(1.0, abs(figure - ground) / 15) + 0.5 * min(1.0, (high - low) / 60)),
        "contours": float(max(0.0, 1 - 25 * np.abs(x - median).mean())),
        "symmetry": float(max(0.0, 1 - 5 * np.abs(x - x[:, ::-1]).mean())),
    }


def taste(x: Array) -> float:
    """What the rule gives a picture (64, 64, 3) in [0, 1]; for a portrait, hand in its bare twin."""
    return sum(WEIGHTS[name] * value for name, value in terms(x).items())


def taste_of(image: Image.Image) -> float:
    """The rule's value of a picture."""
    return taste(as_array(image))


def _lab(x: Array) -> Array:
    """CIE L*a*b* (D65) of sRGB in [0, 1]."""
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
