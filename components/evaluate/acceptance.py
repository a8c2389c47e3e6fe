"""Does a scorer see damage? Held-out pictures are spoiled in ways that every judge of pictures has to notice."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from components.evaluate.evaluation_set import Prompt
from components.evaluate.scoring import PictureScorer

SEVERITIES = (0, 1, 2)
SEEN = 0.75
"""A damage is seen where at the highest severity so many clean pictures score above their damaged twins."""
SWAPPED = "another's caption"


def _blur(picture: Image.Image, severity: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(picture.width * (0.01, 0.02, 0.04)[severity]))


def _noise(picture: Image.Image, severity: int) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float64)
    spoilt = pixels + np.random.default_rng(0).normal(0, 255 * (0.04, 0.08, 0.15)[severity], pixels.shape)
    return Image.fromarray(spoilt.clip(0, 255).round().astype(np.uint8))


def _jpeg(picture: Image.Image, severity: int) -> Image.Image:
    written = io.BytesIO()
    picture.save(written, format="JPEG", quality=(40, 20, 5)[severity])
    return Image.open(written, formats=("JPEG",)).convert("RGB")


def _colour(picture: Image.Image, severity: int) -> Image.Image:
    return ImageEnhance.Color(picture).enhance((0.6, 0.3, 0.0)[severity])


def _crop(picture: Image.Image, severity: int) -> Image.Image:
    left, top = (int(side * (1 - (0.85, 0.7, 0.5)[severity])) for side in picture.size)
    return picture.crop((left, top, *picture.size)).resize(picture.size, Image.Resampling.BICUBIC)


DAMAGES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "JPEG": _jpeg,
    "lost colour": _colour,
    "crop": _crop,
}


@dataclass(frozen=True)
class Acceptance:
    """What one scorer made of damaged pictures."""

    scorer: str
    seen: dict[str, tuple[float, ...]]
    """Damage -> at each severity, the share of pictures that score above their damaged twin; ties count half."""

    @property
    def blind(self) -> bool:
        """Whether it sees none of the damages."""
        return all(shares[-1] < SEEN for shares in self.seen.values())


def accept(scorer: PictureScorer, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Acceptance:
    """Score pictures with their captions, whole and damaged; the scorer's own axis counts."""

    def score(shown: Sequence[Image.Image], asked: Sequence[Prompt]) -> np.ndarray:
        values = np.asarray(scorer.score(shown, asked)[scorer.axis], dtype=np.float64)
        return values if scorer.higher_is_better else -values

    def share(spoilt: np.ndarray) -> float:
        return float((clean > spoilt).mean() + (clean == spoilt).mean() / 2)

    clean = score(pictures, prompts)
    seen = {
        name: tuple(share(score([damage(one, severity) for one in pictures], prompts)) for severity in SEVERITIES)
        for name, damage in DAMAGES.items()
    }
    seen[SWAPPED] = (share(score(pictures, [*prompts[1:], prompts[0]])),)
    return Acceptance(scorer.name, seen)
