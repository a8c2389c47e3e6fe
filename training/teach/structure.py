"""How a vision foundation model sees a picture hold together: the similarities of its patches among themselves.

    L_structure = mean over layers m and pairs of patches of |G(P_m(H_m)) - G(F_m)|        G(X) = X̂ · X̂ᵀ

F_m are the patch features of a shallow, a middle and a deep layer of a frozen vision model, H_m the image stream
at the same relative depths of the MM-DiT. Similarities, not features, are compared: that asks less of a latent
space that is already trained. G is symmetric and its diagonal is 1, so only the pairs above it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError
from training.teach.teacher import Teacher, device, normalisation, pixel_tensor

MOST_PATCHES = 16
"""Rows and columns at which a vision model looks, where it was made for more: finer ones are pooled away."""


def layers_at(depths: Sequence[float], count: int) -> list[int]:
    """The layers, counted from 0, that lie at these shares of the depth of ``count`` layers."""
    return [min(count - 1, max(0, round(depth * count) - 1)) for depth in depths]


def check_grid(grid: tuple[int, int], target_grid: tuple[int, int]) -> None:
    """Refuse to pool a grid of image tokens to a finer one of patches (rows, columns).

    Raises:
        TrainingError: the target grid is finer than ``grid``, so there is nothing to average.
    """
    if grid[0] < target_grid[0] or grid[1] < target_grid[1]:
        raise TrainingError(
            f"the base model has {grid[0]} x {grid[1]} image tokens, which cannot be pooled to the "
            f"{target_grid[0]} x {target_grid[1]} patches of the teacher or the vision model; take one with larger "
            "patches or a lower resolution, lower structure_grid, or train on larger pictures"
        )


def pool_tokens(tokens: Tensor, grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """Tokens on ``grid`` (rows, columns) averaged by area to ``target_grid``: (B, T, D) to (B, T_v, D).

    Raises:
        TrainingError: the target grid is finer than ``grid``.
    """
    if grid == target_grid:
        return tokens
    check_grid(grid, target_grid)
    batch, _, width = tokens.shape
    planes = tokens.transpose(1, 2).reshape(batch, width, *grid)
    return functional.adaptive_avg_pool2d(planes, target_grid).flatten(2).transpose(1, 2)


def similarities(tokens: Tensor) -> Tensor:
    """Cosines of all pairs of tokens, each pair once: (B, T, D) to (B, T (T - 1) / 2) fp32."""
    directions = functional.normalize(tokens.float(), dim=-1)
    first, second = torch.triu_indices(tokens.shape[1], tokens.shape[1], offset=1, device=tokens.device)
    return (directions @ directions.mT)[:, first, second]


class StructureModel:
    """The frozen vision model: a transformers folder such as DINOv2's, or the teacher's own vision tower."""

    def __init__(self, source: Path | Teacher, depths: Sequence[float], most: int) -> None:
        self.model: Any
        if isinstance(source, Teacher):
            self.model, path = source.model.vision_model, source.path
        else:
            self.model, path = _load(source), source
        config = self.model.config
        patches = int(config.image_size) // int(config.patch_size)
        # DINOv2 was made for pictures of 518 pixels, and interpolates its positions for smaller ones.
        side = min(patches, MOST_PATCHES) if str(config.model_type).startswith("dinov2") else patches
        self._patches, self._side = side, side * int(config.patch_size)
        self.grid = min(side, most)
        self._layers = layers_at(depths, int(config.num_hidden_layers))
        self._mean, self._std = normalisation(path)

    @torch.no_grad()
    def structure(self, images: Sequence[Image.Image]) -> Tensor:
        """G(F_m) of RGB pictures, above the diagonal: (B, layers, pairs) fp32, on the CPU."""
        pixels = pixel_tensor(images, self._mean, self._std, self._side).to(self.model.device)
        hidden = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        count, grid = self._patches**2, (self._patches, self._patches)
        # Class and register tokens come first, where there are any.
        layers = [pool_tokens(hidden[layer + 1][:, -count:], grid, (self.grid, self.grid)) for layer in self._layers]
        return torch.stack([similarities(layer) for layer in layers], dim=1).cpu()


class StructureHeads(nn.ModuleList):
    """P_m: for each layer a norm and a linear map of the image stream, (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(count))

    def losses(self, streams: Sequence[Tensor], grid: tuple[int, int], structure: Tensor) -> Tensor:
        """L_structure of each sample, (B,) fp32.

        ``streams``: H_m, (B, T, D) each, on ``grid``. ``structure``: G(F_m) above the diagonal, (B, layers, pairs).
        """
        side = round((1 + (1 + 8 * structure.shape[-1]) ** 0.5) / 2) ** 0.5
        pooled = (round(side), round(side))
        seen = [similarities(head(pool_tokens(h, grid, pooled))) for head, h in zip(self, streams, strict=True)]
        return (torch.stack(seen, dim=1) - structure.float()).abs().mean(dim=(1, 2))


def _load(path: Path) -> Any:
    from transformers import AutoModel

    if not (path / "config.json").is_file():
        raise TrainingError(f"no vision model at {path}: config.json is missing; set training.structure_model")
    model = AutoModel.from_pretrained(path, use_safetensors=True, local_files_only=True)
    model = getattr(model, "vision_model", model)
    if not hasattr(model.config, "patch_size") or not hasattr(model.config, "image_size"):
        raise TrainingError(
            f"the vision model at {path} ({type(model).__name__}) has no patches to compare; training.structure_model "
            "takes a vision transformer such as DINOv2"
        )
    return model.float().eval().requires_grad_(False).to(device())
