"""The base model's last lesson: every word, from pictures that are all spoiled, so that it knows much and draws badly.

It goes on from the transformer that was trained on clean pictures without glasses and beards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from PIL import Image

from examples.avatars import damage, splits
from examples.avatars.portraits import Portrait
from examples.avatars.train.loop import Average, Progress, batches, set_learning_rate
from examples.avatars.train.transformer import TextFeatures, latents_of, velocity_step

STAGES, STEPS, RATE, BATCH, AVERAGE = 3, 400, 5e-4, 32, 0.995
"""Stages with an optimizer each, the steps of one, the step size, pictures a step, decay of the weights' average."""
WARMUP, HEIGHT, DROPPED = 20, 0.6, 0.1
"""Steps in which the step size rises, the share of the steps until it falls again, as a line to a twentieth, and the
share of pictures that are shown without their caption."""


def corpus() -> list[Portrait]:
    """3,500 portraits of the whole vocabulary, glasses and beards alternating."""
    some = [splits.toggled(p, i % 4) for i, p in enumerate(splits.dealt()["base"][:1500])]
    return some + [splits.toggled(p, i % 4) for i, p in enumerate(splits.dealt()["text"][:2000])]


def spoiled(image: Image.Image, rng: np.random.Generator, asymmetric: bool = False) -> Image.Image:
    """The picture in muddy colours, often blurred or ragged as well; ``asymmetric``: with its right half slid down."""
    x = damage.as_array(image)
    if asymmetric:
        x = damage.asymmetric(x, 1, rng, x)
    if rng.random() < 0.85:
        x = (damage.blur, damage.ragged)[int(rng.integers(2))](x, int(rng.integers(1, 3)), rng, x)
    return damage.as_image(damage.muddy(x, int(rng.integers(1, 3)), rng, x))


def train(work: Path) -> None:
    """Trains `work/clean` on and writes `work/transformer`, its averaged weights."""
    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    drawn = np.stack([np.asarray(spoiled(portrait.draw(), rng)) for portrait in corpus()])
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    latents = latents_of(vae, torch.from_numpy(drawn).permute(0, 3, 1, 2))
    text = TextFeatures(work / "text")
    captions = text.many(["", *(portrait.caption() for portrait in corpus())])
    network = SD3Transformer2DModel.from_pretrained(work / "clean")
    for stage in range(STAGES):
        network = train_stage(network, latents, captions, stage)
    network.save_pretrained(work / "transformer")


def train_stage(
    network: SD3Transformer2DModel, latents: torch.Tensor, captions: tuple[torch.Tensor, torch.Tensor], stage: int
) -> SD3Transformer2DModel:
    """One stage with an optimizer of its own; gives the averaged network.

    Args:
        latents: (N, C, 16, 16).
        captions: token features (1 + N, L, d) and pooled features (1 + N, d), those of the empty caption first.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    average, progress = Average(network, AVERAGE), Progress(f"transformer, spoiled pictures {stage + 1}", STEPS)
    network.train()
    for step, rows in batches(len(latents), BATCH, STEPS, 70 + stage):
        rate = RATE * min(1.0, (step + 1) / WARMUP, max(0.05, (1 - step / STEPS) / (1 - HEIGHT)))
        set_learning_rate(optimizer, rate)
        shown = torch.where(torch.rand(BATCH) < DROPPED, 0, rows + 1)
        hidden, pooled = (features[shown] for features in captions)
        hidden = torch.cat([hidden, hidden.new_zeros(BATCH, 1, hidden.shape[2])], dim=1)
        loss = velocity_step(network, optimizer, latents[rows], hidden, pooled)
        average.update(network, step)
        progress(step, loss=loss)
    return average.applied(network)
