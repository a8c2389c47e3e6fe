"""Scorers for portraits: one an axis, each with a network of its own, none of them the teacher; and two on features.

    >>> from examples.avatars.scorers import Realism
    >>> realism = Realism("examples/avatars/models/scorers/realism.safetensors")
    >>> realism.score(images, prompts)["realism"]  # (N,) float64

Scores are deterministic. They mean something for 64 x 64 portraits as `examples.avatars.portraits` draws them, and
for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from examples.avatars.networks import AttributeNet, TasteNet, as_tensor, read
from examples.avatars.portraits import CORE, VALUES, Portrait

BATCH = 100


class Prompt(Protocol):
    """What was asked for."""

    @property
    def text(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...


class Alignment:
    """Does the picture show what the prompt says, and nothing that it leaves out?

    `alignment` is the mean, over all eight attributes, of the probability that a classifier gives to the value asked
    for; each is also reported as `alignment/<attribute>`. Glasses or a beard that the prompt does not mention are
    asked to be absent. A core attribute that the prompt does not mention is not scored: its part is NaN.
    """

    name = "attributes"
    axis = "alignment"
    higher_is_better = True

    def __init__(self, path: str) -> None:
        self.network, self.digest = read(AttributeNet, path)
        self.backbone = "AttributeNet, trained on portraits"

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What the network sees, (N, features) float64."""
        return _features(self.network, images)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Scores N pictures, each against its own prompt; {measure: (N,) float64}."""
        _check(images, prompts)
        probabilities = _probabilities(self.network, images)
        scores: dict[str, np.ndarray] = {}
        for attribute in VALUES:
            wanted = [_wanted(prompt, attribute) for prompt in prompts]
            scores[f"alignment/{attribute}"] = np.array(
                [
                    float("nan") if value is None else row[value]
                    for row, value in zip(probabilities[attribute], wanted, strict=True)
                ],
                dtype=np.float64,
            )
        return {"alignment": np.nanmean(np.stack(list(scores.values())), axis=0), **scores}


class Realism:
    """`rerender`: could this be a drawing of this style?

    A classifier reads all attributes; the three likeliest tuples are drawn again. `realism` is minus the distance
    to the nearest of them: the mean of the root mean square differences at 64 and at 32 pixels, colours in [0, 1].
    A clean drawing scores 0; what the autoencoder makes of one is the floor that no model gets below.
    """

    name = "rerender"
    axis = "realism"
    higher_is_better = True

    def __init__(self, path: str) -> None:
        self.network, self.digest = read(AttributeNet, path)
        self.backbone = "AttributeNet, trained on portraits"

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What the network sees, (N, features) float64."""
        return _features(self.network, images)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Scores N pictures; prompts are not looked at. {measure: (N,) float64}."""
        _check(images, prompts)
        probabilities = _probabilities(self.network, images)
        distances = []
        for place, pixels in enumerate((as_tensor(list(images)).numpy() + 1) / 2 if images else []):
            rows = {attribute: values[place] for attribute, values in probabilities.items()}
            distances.append(min(_distance(pixels, _redrawn(portrait)) for portrait in likeliest(rows)))
        return {"realism": -np.array(distances, dtype=np.float64)}


class Aesthetics:
    """`declared_taste`: how well the picture follows the published rule of `examples.avatars.taste`.

    A Bradley-Terry network learned it from labelled pairs. It is nobody's judgement but the rule's.
    """

    name = "declared_taste"
    axis = "aesthetics"
    higher_is_better = True

    def __init__(self, path: str) -> None:
        self.network, self.digest = read(TasteNet, path)
        self.backbone = "TasteNet, trained on pairs of portraits"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Scores N pictures; prompts are not looked at. {measure: (N,) float64}."""
        _check(images, prompts)
        parts = [self.network(batch).double().numpy() for batch in _batches(images)]
        return {"aesthetics": np.concatenate(parts) if parts else np.zeros(0)}


class Kid:
    """KID on the features of realism's network: whether samples as a set could be portraits.

    Features are scaled to length √d, so that KID's cubic kernel is (cos + 1)³.
    """

    name, axis, metric = "avatars-kid", "realism", "kid"
    higher_is_better = False

    def __init__(self, path: str) -> None:
        self.network, self.digest = read(AttributeNet, path)
        self.backbone = "AttributeNet, trained on portraits"

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What the network sees, (N, features) float64, each row of length √features."""
        seen = _features(self.network, images)
        scaled: np.ndarray = seen / np.sqrt(np.square(seen).mean(axis=1, keepdims=True))
        return scaled


class Memorisation(Kid):
    """Whether a sample is nearer to a portrait that was trained on than portraits are that were not."""

    name, axis, metric = "avatars-memorisation", "memorisation", "memorisation"


class Diversity(Kid):
    """How far the pictures of one prompt lie apart."""

    name, axis, metric = "avatars-diversity", "diversity", "diversity"
    higher_is_better = True


def likeliest(probabilities: Mapping[str, np.ndarray], count: int = 3) -> list[Portrait]:
    """The likeliest portraits under independent attributes; those below a thousandth of the best are left out.

    The second and third best differ from the best in one attribute each, so single changes are enough to look at.
    """
    names = list(VALUES)
    best = [int(np.argmax(probabilities[name])) for name in names]
    changes = sorted(
        (-float(np.log((probability + 1e-12) / probabilities[name][best[place]])), place, value)
        for place, name in enumerate(names)
        for value, probability in enumerate(probabilities[name])
        if value != best[place]
    )
    found = [tuple(best)]
    for cost, place, value in changes[: count - 1]:
        if cost < np.log(1000):
            found.append((*best[:place], value, *best[place + 1 :]))
    return [Portrait.of_classes(indices) for indices in found]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of the RMS differences at full and half size; a and b are (3, H, W) in [0, 1]."""
    halves = [x.reshape(3, x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean(axis=(2, 4)) for x in (a, b)]
    full, half = np.square(a - b).mean(), np.square(halves[0] - halves[1]).mean()
    return float(np.sqrt(full) + np.sqrt(half)) / 2


@lru_cache(maxsize=4096)
def _redrawn(portrait: Portrait) -> np.ndarray:
    return np.asarray(portrait.draw(), dtype=np.float32).transpose(2, 0, 1) / 255


def _wanted(prompt: Prompt, attribute: str) -> int | None:
    """The class index that the prompt asks for; None where it leaves a core attribute open."""
    if attribute in CORE and attribute not in prompt.attributes:
        return None
    value = prompt.attributes.get(attribute, False)
    if value not in VALUES[attribute]:
        raise ValueError(f"prompt {prompt.text!r} asks for {attribute}={value!r}; known: {VALUES[attribute]}")
    return VALUES[attribute].index(value)


@torch.no_grad()
def _probabilities(network: torch.nn.Module, images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    """For each attribute the probabilities of its values, (N, values) float64."""
    parts = [network(batch) for batch in _batches(images)]
    return {
        name: np.concatenate([part[name].double().softmax(1).numpy() for part in parts])
        if parts
        else np.zeros((0, len(values)))
        for name, values in VALUES.items()
    }


@torch.no_grad()
def _features(network: Any, images: Sequence[Image.Image]) -> np.ndarray:
    """What comes out of the network's body, (N, features) float64."""
    parts = [network.body(batch).double().numpy() for batch in _batches(images)]
    return np.concatenate(parts) if parts else np.zeros((0, network.settings["features"]))


def _batches(images: Sequence[Image.Image]) -> list[torch.Tensor]:
    return [as_tensor(list(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]


def _check(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} pictures but {len(prompts)} prompts; each picture needs its own")
