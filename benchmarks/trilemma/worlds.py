"""The two worlds of the experiment: what base′ was shown, what the narrow sets show, and what is asked of both.

| | world 1 | world 2, the harder one |
|---|---|---|
| base′ has seen | muddy; 85 % blurred or ragged as well | the same, and the right half slid down by 3 pixels |
| a seed's set | about 100 clean portraits | 40 clean portraits |
| they show | light skin, three hair styles, three backgrounds | dark skin, four hair styles, one mouth |
| they never show | tan and dark skin, glasses, beards | light and tan skin, three mouths, glasses, beards |
| the prompts ask for | tan and dark skin, a quarter each of the toggles | light and tan skin, the same |

Everything of a set is drawn from the split `new`, prompts from `evaluation`, replayed captions from `teacher`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.avatars import splits
from examples.avatars.portraits import VALUES, Portrait

MODELS = Path(__file__).parents[2] / "examples" / "avatars" / "models"
WORLDS = (1, 2)
PROMPTS = 100
"""Of the reported ones, and as many to choose with."""
SAMPLED = 256
"""Replayed samples of base′, of the first replayed captions."""


@dataclass(frozen=True)
class Set:
    """A seed's narrow set."""

    portraits: list[Portrait]
    shown: dict[str, list[str]]
    """The values that it is limited to."""


def spoil(world: int, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture as base′ of ``world`` sees it; every one is spoiled."""
    from examples.avatars.train.spoiled import spoiled  # loads diffusers, which runs do without

    return spoiled(image, rng, asymmetric=world == 2)


def narrow(world: int, seed: int) -> Set:
    """The clean portraits of one seed."""
    new = splits.dealt()["new"]
    if world == 1:
        chance = random.Random(1000 + seed)
        hair, ground = chance.sample(VALUES["hair"], 3), chance.sample(VALUES["background"], 3)
        some = [p for p in new if p.skin == "light" and p.hair in hair and p.background in ground]
        return Set(some, {"skin": ["light"], "hair": hair, "background": ground})
    chance = random.Random(2000 + seed)
    hair, mouth = chance.sample(VALUES["hair"], 4), chance.choice(VALUES["mouth"])
    some = [p for p in new if p.skin == "dark" and p.hair in hair and p.mouth == mouth]
    return Set(some[:40], {"skin": ["dark"], "hair": hair, "mouth": [mouth]})


def prompts(world: int) -> tuple[list[Portrait], list[Portrait]]:
    """Portraits to ask for that no set of ``world`` shows: the reported ones, and those that choosing may look at.

    Each a hundred, 25 of each toggle; the two share no portrait.
    """
    inside = "light" if world == 1 else "dark"
    groups: dict[tuple[bool, bool], list[Portrait]] = {}
    for portrait in splits.evaluation_prompts():
        if portrait.skin != inside:
            groups.setdefault((portrait.glasses, portrait.beard), []).append(portrait)
    share = PROMPTS // 4
    reported = [p for some in groups.values() for p in some[:share]]
    choosing = [p for some in groups.values() for p in some[share : 2 * share]]
    if len(choosing) != PROMPTS:
        raise ValueError(f"world {world} has {len(choosing)} choosing prompts; {PROMPTS} are needed")
    return reported, choosing
