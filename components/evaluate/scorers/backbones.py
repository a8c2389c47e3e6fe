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
    """A model and its image processor in one folder, frozen, in fp32; what a scorer is made of.

    Raises:
        OSError, ValueError: the folder holds no such model, not all of it, or in another format than safetensors.
    """

    kind = "AutoModel"
    """The class of transformers that loads it."""

    def __init__(self, path: Path | str) -> None:
        import transformers

        loaded, info = getattr(transformers, self.kind).from_pretrained(
            path, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        if lacking := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise ValueError(f"{path} lacks {lacking[0]} of a {self.kind}, which would be random")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = loaded.float().eval().requires_grad_(False).to(self.device)
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
        self.backbone = f"{type(self.model).__name__} ({Path(path).name})"
        self.digest = digest_path(path)

    def pixels(self, images: Sequence[Image.Image]) -> Iterator[torch.Tensor]:
        """Batches (B, 3, H, W) as the model wants them."""
        for start in range(0, len(images), BATCH):
            batch = self.processor(images=list(images[start : start + BATCH]), return_tensors="pt")
            yield batch["pixel_values"].to(self.device)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(N, d): what the vision tower pools, projected where the model projects it (CLIP)."""
        parts = []
        for pixels in self.pixels(images):
            seen = getattr(self.model, "vision_model", self.model)(pixel_values=pixels).pooler_output
            projection = getattr(self.model, "visual_projection", torch.nn.Identity())
            parts.append(projection(seen).flatten(1).double().cpu())
        return torch.cat(parts).numpy() if parts else np.zeros((0, 0))


def unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (N, d) of length one."""
    scaled: NDArray[np.float64] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return scaled
