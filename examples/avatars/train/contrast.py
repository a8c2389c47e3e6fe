"""Contrastive pre-training against pictures: batches that are hard, and a small picture tower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F


class PictureTower(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to one embedding (B, d) for each of several text encoders."""

    def __init__(self, dimensions: tuple[int, ...], widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(channels * 16, dimension) for dimension in dimensions)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = self.body(x)
        return [head(features) for head in self.heads]


def hard_batches(classes: torch.Tensor, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Row indices, (batch,): every second batch agrees on two random attributes, so that the others decide."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    for step in range(steps):
        rows = torch.arange(len(classes))
        if step % 2:
            anchor = classes[draw(len(classes))]
            for attribute in torch.randperm(classes.shape[1], generator=generator)[:2].tolist():
                kept = rows[classes[rows, attribute] == anchor[attribute]]
                rows = kept if len(kept) >= batch else rows
        yield rows[torch.randperm(len(rows), generator=generator)[:batch]]


def contrastive_loss(a: torch.Tensor, b: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020) between embeddings (B, d) and (B, d)."""
    logits = log_scale.exp() * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    own = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def retrieval(a: torch.Tensor, b: torch.Tensor) -> float:
    """The share of rows in `a`, (N, d), whose nearest row in `b`, (N, d), is their own."""
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    return float((similarity.argmax(1) == torch.arange(len(a))).float().mean())
