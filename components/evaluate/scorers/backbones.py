"""Pre-trained networks that scorers look at pictures with: checkpoints of transformers, in local folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lineage.digests import digest_path

BATCH = 32
"""Pictures seen at once; fixed, because the last bits of a score can depend on it."""


class Backbone:
    """A model and its image processor in one folder, frozen, in fp32.

    Args:
        kind: the class of transformers that loads it.

    Raises:
        OSError, ValueError: the folder holds no such model, or holds it in another format than safetensors.
    """

    def __init__(self, path: Path, kind: str = "AutoModel") -> None:
        import transformers

        loaded: Any = getattr(transformers, kind).from_pretrained(path, use_safetensors=True, local_files_only=True)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = loaded.float().eval().requires_grad_(False).to(self.device)
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
        self.name = f"{type(self.model).__name__} ({path.name})"
        self.digest = digest_path(path)

    def pixels(self, images: Sequence[Image.Image]) -> Iterator[torch.Tensor]:
        """Batches (B, 3, H, W) as the model wants them."""
        for start in range(0, len(images), BATCH):
            batch = self.processor(images=list(images[start : start + BATCH]), return_tensors="pt")
            yield batch["pixel_values"].to(self.device)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(N, d): the projected embedding where the model has one, else what it pools."""
        parts = []
        for pixels in self.pixels(images):
            seen = self.model(pixel_values=pixels)
            found = getattr(seen, "image_embeds", None)
            parts.append((seen.pooler_output if found is None else found).flatten(1).double().cpu())
        return torch.cat(parts).numpy() if parts else np.zeros((0, 0))


def unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (N, d) of length one."""
    scaled: NDArray[np.float64] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return scaled
