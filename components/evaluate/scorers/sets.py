"""Features for what compares pictures with each other: KID, CMMD, Fréchet distances, memorisation, diversity.

The distances themselves are in `components.evaluate.distances`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.evaluate.scorers.backbones import Backbone, unit


class _Distance(Backbone):
    axis, higher_is_better = "realism", False


class Kid(_Distance):
    """KID on any vision backbone of transformers, such as DINOv2."""

    name = metric = "kid"


class Cmmd(_Distance):
    """CMMD on a CLIP checkpoint: its unit-length image embeddings."""

    name = metric = "cmmd"
    kind = "CLIPModel"

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Image embeddings of length one, (N, d)."""
        return unit(super().features(images))


class Fid(_Distance):
    """Fréchet distance on any vision backbone, reported only: it is biased at small samples.

    On other features than Inception's (which need an environment of their own) values are not those of published
    FIDs.
    """

    name, metric = "fid", "frechet"


class FdDinov2(_Distance):
    """FD-DINOv2 (G. Stein et al., arXiv 2306.04675): the Fréchet distance on DINOv2's features, reported only."""

    name, metric, kind = "fd-dinov2", "frechet", "Dinov2Model"


class Memorisation(_Distance):
    """Whether a sample lies nearer to a training picture than pictures that nobody trained on do."""

    name = axis = metric = "memorisation"

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Features of length one, (N, d)."""
        return unit(super().features(images))


class Diversity(Memorisation):
    """How far the pictures of one prompt lie apart."""

    name = axis = metric = "diversity"
    higher_is_better = True
