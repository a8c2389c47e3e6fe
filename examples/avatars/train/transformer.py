"""The MM-DiT: trained from scratch on clean pictures of the `base` split, which holds no glasses and no beards.

Rectified flow: `x_s = (1 - s) x + s n`, target velocity `n - x`, s logit-normal(0, 1) (arXiv 2403.03206). Captions
are dropped one time in ten for guidance, and lose a clause one time in ten. The number of zero tokens that stand
for the absent T5 varies, so that the pipeline's default of 256 draws as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from examples.avatars.train.loop import Average, Progress, batches, learning_rate, set_learning_rate
from examples.avatars.train.pictures import pictures, scaled
from examples.avatars.train.text import WIDTHS, tokens

SEED = 3
ZERO_TOKENS = (1, 4, 16, 64, 256)
"""How many tokens stand for the absent T5; all but the first are rare in training."""
ROUNDS = ((1500, 4500, 1e-3), (1200, 1200, 7e-4))
"""(steps, steps after which the learning rate would reach its floor, peak learning rate): learn, then settle."""


def build(channels: int, layers: int = 6, heads: int = 4) -> SD3Transformer2DModel:
    """A fresh MM-DiT over 16 x 16 latents: 64 image tokens."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=heads,
        caption_projection_dim=32 * heads,
        joint_attention_dim=sum(WIDTHS),
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


class TextFeatures:
    """What the pipeline feeds the transformer for a caption, from the trained encoders."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        names = ("text_encoder", "text_encoder_2")
        self.encoders = [CLIPTextModelWithProjection.from_pretrained(folder / name) for name in names]

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token features (B, CLIP_LENGTH, d) and pooled features (B, d)."""
        ids = tokens(self.tokenizer, captions)
        parts = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        hidden = torch.cat([part.hidden_states[-2] for part in parts], dim=-1)
        return hidden, torch.cat([part.text_embeds for part in parts], dim=-1)

    def many(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """As a call, in slices that keep memory small."""
        parts = [self(captions[start : start + 250]) for start in range(0, len(captions), 250)]
        return torch.cat([hidden for hidden, _ in parts]), torch.cat([pooled for _, pooled in parts])


@torch.no_grad()
def latents_of(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Shifted and scaled latents, (N, C, 16, 16), of uint8 pictures."""
    parts = [vae.encode(scaled(x[start : start + 100])).latent_dist.mean for start in range(0, len(x), 100)]
    return torch.as_tensor((torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor)


@dataclass(frozen=True)
class Corpus:
    """The base split as the loop reads it."""

    latents: torch.Tensor
    """(N, C, 16, 16)."""
    captions: tuple[torch.Tensor, torch.Tensor]
    """Token and pooled features of whole captions."""
    partial: tuple[torch.Tensor, torch.Tensor]
    """The same of captions that lost a clause."""
    nothing: tuple[torch.Tensor, torch.Tensor]
    """The same of the empty caption, one row."""


def read_corpus(work: Path) -> Corpus:
    """Encodes the base split with the trained VAE and text encoders in `work`."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    text = TextFeatures(work / "text")
    x, wanted = pictures("base", work)
    chance = random.Random(SEED)
    partial = []
    for portrait in wanted:
        phrases = portrait.phrases()
        phrases.remove(chance.choice(phrases))
        partial.append(", ".join(["a portrait", *phrases]))
    whole = [portrait.caption() for portrait in wanted]
    return Corpus(latents_of(vae, x), text.many(whole), text.many(partial), text([""]))


def velocity_step(
    network: SD3Transformer2DModel,
    optimizer: torch.optim.Optimizer,
    clean: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> float:
    """One optimizer step on latents (B, C, 16, 16) with what is read of their captions; gives the loss."""
    noise = torch.randn_like(clean)
    s = torch.sigmoid(torch.randn(len(clean)))
    velocity = network(
        hidden_states=torch.lerp(clean, noise, s.view(-1, 1, 1, 1)),
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        timestep=s * 1000,
        return_dict=False,
    )[0]
    loss = (velocity - (noise - clean)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    seen: float = loss.item()
    return seen


def train(work: Path) -> None:
    """Trains and writes `work/clean`, its averaged weights, every 500 steps."""
    torch.manual_seed(SEED)
    corpus = read_corpus(work)
    network = build(corpus.latents.shape[1])
    for number in range(len(ROUNDS)):
        network = train_round(work, corpus, network, number)


def train_round(
    work: Path, corpus: Corpus, network: SD3Transformer2DModel, number: int, batch: int = 32
) -> SD3Transformer2DModel:
    """One round of `ROUNDS` with an optimizer of its own; gives the averaged network."""
    steps, horizon, peak = ROUNDS[number]
    chance = random.Random(SEED + number)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    average, progress = Average(network, 0.999), Progress("transformer", steps)
    network.train()
    for step, rows in batches(len(corpus.latents), batch, steps, SEED + number):
        set_learning_rate(optimizer, learning_rate(step, horizon, peak))
        hidden, pooled = (features[rows] for features in corpus.captions)
        kind = torch.rand(batch)
        for place in (kind < 0.2).nonzero().flatten().tolist():
            other, at = (corpus.nothing, 0) if kind[place] < 0.1 else (corpus.partial, rows[place])
            hidden[place], pooled[place] = other[0][at], other[1][at]
        zeros = ZERO_TOKENS[0] if chance.random() < 0.95 else chance.choice(ZERO_TOKENS[1:])
        hidden = torch.cat([hidden, hidden.new_zeros(batch, zeros, hidden.shape[2])], dim=1)

        loss = velocity_step(network, optimizer, corpus.latents[rows], hidden, pooled)
        average.update(network, step)
        progress(step, loss=loss)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            average.applied(network).save_pretrained(work / "clean")
    return average.applied(network)
