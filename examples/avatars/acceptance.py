"""Do the scorers notice what they are for? `python -m examples.avatars.acceptance [--write FILE]`

200 held-out drawings are spoiled in nine ways, each at three severities. For every scorer and every damage: the
AUC (the probability that a clean drawing scores above a spoiled one, ties half) at each severity. Toggling glasses
or a beard must move realism and aesthetics by less than 0.1 sigma. Sigma is the standard deviation over the same
drawings: of aesthetics over the clean ones, of realism over their round trips through the autoencoder (clean ones
all score 0). The mean of those round trips is realism's floor: no model gets above it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from examples.avatars.damage import AESTHETICS, EVERY, REALISM, as_array, as_image
from examples.avatars.networks import as_tensor
from examples.avatars.portraits import CORE, VALUES, Portrait
from examples.avatars.scorers import Aesthetics, Alignment, Realism
from examples.avatars.splits import portraits
from examples.avatars.taste import taste

MODELS = Path(__file__).parent / "models"
SEVERITIES = (1, 2, 3)
AXES = ("alignment", "realism", "aesthetics")
OWNED = {"alignment": ("swapped attributes",), "realism": tuple(REALISM), "aesthetics": tuple(AESTHETICS)}
"""The damages that each axis has to notice."""


@dataclass(frozen=True)
class Asked:
    """A prompt as a scorer sees it."""

    text: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, portrait: Portrait) -> Asked:
        return cls(portrait.caption(), portrait.attributes())


@dataclass(frozen=True)
class Acceptance:
    """What was measured, on `count` drawings."""

    count: int
    auc: dict[tuple[str, str], tuple[float, ...]]
    """(axis, damage) to the AUC at severities 1, 2, 3."""
    means: dict[tuple[str, str], tuple[float, ...]]
    """(axis, damage) to the mean score: clean, then severities 1, 2, 3."""
    toggles: dict[tuple[str, str], float]
    """(axis, toggle) to the mean move, in standard deviations of the axis."""
    agreement: float
    """How often aesthetics orders a pair of clean drawings as the rule does."""
    sigma: dict[str, float]
    """axis to the standard deviation that its toggles are measured in."""
    floor: float
    """The mean realism of round trips through the autoencoder."""

    def monotone(self, axis: str, damage: str) -> bool:
        """Whether the mean score falls with each severity."""
        values = self.means[axis, damage]
        return all(after < before for before, after in itertools.pairwise(values))

    def table(self) -> str:
        """Markdown: AUC at severities 1 / 2 / 3; what an axis has to notice is bold."""
        damages = [*OWNED["alignment"], *EVERY]
        lines = ["| damage | " + " | ".join(AXES) + " |", "|---" * (len(AXES) + 1) + "|"]
        for damage in damages:
            cells = []
            for axis in AXES:
                shown = " / ".join(f"{value:.2f}" for value in self.auc[axis, damage])
                cells.append(f"**{shown}**" if damage in OWNED[axis] else shown)
            lines.append(f"| {damage} | " + " | ".join(cells) + " |")
        lines += ["", "| toggle | realism | aesthetics |", "|---|---|---|"]
        for toggle in ("glasses", "beard"):
            moved = [f"{self.toggles[axis, toggle]:+.3f} σ" for axis in ("realism", "aesthetics")]
            lines.append(f"| {toggle} put on | " + " | ".join(moved) + " |")
        lines += ["", f"Realism's floor, drawings through the autoencoder and back: {self.floor:.4f}, "]
        lines[-1] += f"σ {self.sigma['realism']:.4f}. Aesthetics: σ {self.sigma['aesthetics']:.3f}."
        lines += ["", f"Aesthetics orders {self.agreement:.1%} of pairs of clean drawings as the rule does."]
        return "\n".join(lines)


def measure(models: Path = MODELS, count: int = 200) -> Acceptance:
    """Measures all three scorers on `count` held-out drawings."""
    scorers = models / "scorers"
    loaded: dict[str, Any] = {
        "alignment": Alignment(str(scorers / "alignment.safetensors")),
        "realism": Realism(str(scorers / "realism.safetensors")),
        "aesthetics": Aesthetics(str(scorers / "aesthetics.safetensors")),
    }
    shown = portraits("heldout", count)
    drawn = [as_array(portrait.draw()) for portrait in shown]
    asked = [Asked.of(portrait) for portrait in shown]

    def score(axis: str, images: Sequence[Image.Image], prompts: Sequence[Asked]) -> np.ndarray:
        values: np.ndarray = loaded[axis].score(images, prompts)[axis]
        return values

    pictures = [as_image(x) for x in drawn]
    clean = {axis: score(axis, pictures, asked) for axis in AXES}
    found: dict[tuple[str, str], list[np.ndarray]] = {
        (axis, damage): [] for axis in AXES for damage in ("swapped attributes", *EVERY)
    }
    for severity in SEVERITIES:
        swapped = [Asked.of(swap(portrait, severity, place)) for place, portrait in enumerate(shown)]
        for axis in AXES:
            found[axis, "swapped attributes"].append(score(axis, pictures, swapped))
        for name, damage in EVERY.items():
            rng = np.random.default_rng(severity)
            spoiled = [
                as_image(damage(x, severity, rng, drawn[(place + 1) % len(drawn)])) for place, x in enumerate(drawn)
            ]
            for axis in AXES:
                found[axis, name].append(score(axis, spoiled, asked))

    floor = score("realism", round_trips(models / "base" / "vae", pictures), asked)
    sigma = {"realism": float(floor.std()), "aesthetics": float(clean["aesthetics"].std())}
    return Acceptance(
        count=len(shown),
        auc={key: tuple(auc(clean[key[0]], values) for values in found[key]) for key in found},
        means={key: tuple(float(v.mean()) for v in (clean[key[0]], *found[key])) for key in found},
        toggles=_toggles(score, shown, sigma),
        agreement=_agreement(score, shown),
        sigma=sigma,
        floor=float(floor.mean()),
    )


@torch.no_grad()
def round_trips(vae: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """What the autoencoder makes of pictures."""
    network = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval()
    made: list[Image.Image] = []
    for start in range(0, len(pictures), 50):
        batch = as_tensor(pictures[start : start + 50])
        seen = network.decode(network.encode(batch).latent_dist.mean).sample
        made += [as_image(x) for x in ((seen + 1) / 2).permute(0, 2, 3, 1).double().numpy()]
    return made


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """The probability that a value of `above` exceeds one of `below`, ties counted half."""
    gap = above[:, None] - below[None, :]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def swap(portrait: Portrait, count: int, seed: int) -> Portrait:
    """The portrait with `count` core attributes changed to other values."""
    rng = np.random.default_rng(seed)
    changed = portrait.attributes()
    for name in rng.permutation(list(CORE))[:count]:
        changed[name] = rng.choice([value for value in VALUES[name] if value != changed[name]]).item()
    return Portrait.of(changed)


def _toggles(score: Any, shown: list[Portrait], sigma: dict[str, float]) -> dict[tuple[str, str], float]:
    moved = {}
    for toggle in ("glasses", "beard"):
        scores = {}
        for worn in (False, True):
            worn_by = [Portrait.of({**portrait.attributes(), toggle: worn}) for portrait in shown]
            images, asked = [portrait.draw() for portrait in worn_by], [Asked.of(p) for p in worn_by]
            scores[worn] = {axis: score(axis, images, asked) for axis in ("realism", "aesthetics")}
        for axis in ("realism", "aesthetics"):
            moved[axis, toggle] = float((scores[True][axis] - scores[False][axis]).mean()) / sigma[axis]
    return moved


def _agreement(score: Any, shown: list[Portrait]) -> float:
    bare = list(dict.fromkeys(portrait.bare() for portrait in shown))
    images = [portrait.draw() for portrait in bare]
    learned = score("aesthetics", images, [Asked.of(portrait) for portrait in bare])
    rule = np.array([taste(as_array(image)) for image in images])
    first, second = np.triu_indices(len(bare), k=1)
    return float(((learned[first] > learned[second]) == (rule[first] > rule[second])).mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.avatars.acceptance", description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help="the folder of the models")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    table = measure(asked.models).table()
    print(table)
    if asked.write:
        asked.write.write_text(table + "\n", "utf-8")


if __name__ == "__main__":
    main()
