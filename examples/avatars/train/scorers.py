"""The three scorers' networks, each trained on its own, none of them the teacher.

`alignment` and `realism` classify attributes; they see spoiled and reconstructed pictures too, so that they read
a model's samples and not only clean drawings. `aesthetics` learns from pairs that the declared taste labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from examples.avatars.damage import AESTHETICS, EVERY, as_image
from examples.avatars.networks import AttributeNet, TasteNet, as_tensor, write
from examples.avatars.portraits import VALUES, Portrait
from examples.avatars.taste import taste
from examples.avatars.train.loop import Progress, batches, learning_rate, set_learning_rate
from examples.avatars.train.pictures import classes, pictures, scaled

WRONG_LABELS = 0.1
"""The share of preference labels that are turned round."""


@torch.no_grad()
def round_trips(work: Path, x: torch.Tensor) -> torch.Tensor:
    """What the autoencoder makes of uint8 pictures, (N, 3, 64, 64) uint8."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    parts = []
    for start in range(0, len(x), 100):
        seen = vae.decode(vae.encode(scaled(x[start : start + 100])).latent_dist.mean).sample
        parts.append(((seen.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)


def roughened(x: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, 64, 64): a third as they are, a third noisy, a third blurred; all a little off in colour."""
    kind = torch.rand(len(x), 1, 1, 1)
    spread = 0.25 * torch.rand(len(x), 1, 1, 1)
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.where(kind < 1 / 3, x, torch.where(kind < 2 / 3, x + spread * torch.randn_like(x), smooth))
    return x * (0.9 + 0.2 * torch.rand(len(x), 1, 1, 1)) + 0.06 * torch.randn(len(x), 3, 1, 1)


def attribute_net(
    name: str, network: AttributeNet, work: Path, seed: int, steps: int, batch: int = 64, peak: float = 2e-3
) -> None:
    """Trains a classifier of every attribute and writes `work/scorers/<name>.safetensors`."""
    x, wanted = pictures("scorers", work)
    extra = 2000
    y = torch.cat([classes(wanted), classes(wanted[:extra])])
    x = torch.cat([x, round_trips(work, x[:extra])])
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=0.01)
    progress = Progress(name, steps)
    for step, rows in batches(len(x), batch, steps, seed):
        set_learning_rate(optimizer, learning_rate(step, steps, peak))
        logits = network(roughened(scaled(x[rows])))
        losses = [F.cross_entropy(logits[key], y[rows, place]) for place, key in enumerate(VALUES)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        progress(step, loss=loss.item())
    accuracies = _accuracies(network.eval(), work)
    print(name, accuracies, flush=True)
    facts = {"scorer": name, "seed": seed, "steps": steps, "heldout_accuracy": accuracies}
    write(network, work / "scorers" / f"{name}.safetensors", facts)


def alignment(work: Path, steps: int = 900) -> None:
    """The classifier that reads whether a picture shows what was asked for."""
    torch.manual_seed(10)
    attribute_net("alignment", AttributeNet((24, 48, 96, 128), 3), work, 10, steps)


def realism(work: Path, steps: int = 800) -> None:
    """The classifier whose reading is drawn again and compared."""
    torch.manual_seed(11)
    attribute_net("realism", AttributeNet((16, 40, 80, 160), 5), work, 11, steps)


def aesthetics(work: Path, steps: int = 2500, batch: int = 64, peak: float = 2e-3, portraits: int = 3000) -> None:
    """The Bradley-Terry network of the declared taste, on labelled pairs and on toggles, which are ties.

    A row is a portrait in one of its toggles, spoiled or not, drawn or as a model might sample it; the rule scores its
    bare twin, spoiled alike. Every two rows of a batch are a pair, and its label is turned round one time in ten.
    """
    torch.manual_seed(12)
    x, rule = _rated(work, portraits, np.random.default_rng(12))
    network = TasteNet((24, 48, 96, 128), 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=0.01)
    progress = Progress("aesthetics", steps)
    first, second = torch.triu_indices(batch, batch, 1)
    for step, rows in batches(len(x), batch, steps, 12):
        set_learning_rate(optimizer, learning_rate(step, steps, peak))
        shown = scaled(x[rows, torch.randint(x.shape[1], (batch,))])
        twins = scaled(x[rows, torch.randint(x.shape[1], (batch,))])[: batch // 2]
        score, twin = network(torch.cat([shown, twins])).split([batch, batch // 2])
        right = rule[rows[first]] > rule[rows[second]]
        label = right ^ (torch.rand(len(right)) < WRONG_LABELS)
        gap = score[first] - score[second]
        loss = F.binary_cross_entropy_with_logits(gap, label.float())
        ties = (score[: batch // 2] - twin).pow(2).mean()
        optimizer.zero_grad()
        (loss + ties).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        progress(step, loss=loss.item(), ties=ties.item(), agreement=((gap > 0) == right).float().mean().item())
    facts = {"scorer": "aesthetics", "seed": 12, "steps": steps, "wrong_labels": WRONG_LABELS}
    write(network.eval(), work / "scorers" / "aesthetics.safetensors", facts)


def _rated(work: Path, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (2N, 4, 3, 64, 64) uint8, the four toggles of a portrait in a row, and the rule of each row (2N,).

    The first N rows are drawn, every second of them spoiled: by one of the three things the taste minds, or by any
    other. The others are what the autoencoder makes of the first from noisy latents, much as a model's samples are.
    """
    x, wanted = pictures("scorers", work)
    drawn: dict[Portrait, np.ndarray] = {
        portrait: x[place].permute(1, 2, 0).numpy() / 255 for place, portrait in enumerate(wanted)
    }
    cores = list(dict.fromkeys(portrait.bare() for portrait in wanted))[:count]
    rows = []
    for place, core in enumerate(cores):
        damages = list(AESTHETICS.values()) if place % 4 == 1 else list(EVERY.values())
        damage = damages[int(rng.integers(len(damages)))] if place % 2 else None
        severity, seed = int(rng.integers(1, 4)), int(rng.integers(2**32))
        other = cores[int(rng.integers(len(cores)))]
        toggles = []
        for glasses, beard in ((False, False), (False, True), (True, False), (True, True)):
            key = Portrait.of({**core.attributes(), "glasses": glasses, "beard": beard})
            spoiled = drawn[key]
            if damage is not None:
                spoiled = damage(spoiled, severity, np.random.default_rng(seed), drawn[other])
            toggles.append(spoiled)
        rows.append(as_tensor([as_image(toggle) for toggle in toggles]))
    clean = ((torch.stack(rows) + 1) * 127.5).round().byte()
    everything = torch.cat([clean, _sampled(work, clean)])
    rule = [taste(row[0].permute(1, 2, 0).numpy() / 255) for row in everything]
    return everything, torch.tensor(rule)


@torch.no_grad()
def _sampled(work: Path, rows: torch.Tensor, most: float = 0.5) -> torch.Tensor:
    """Rows (N, 4, 3, 64, 64) uint8 through the autoencoder, each row with one noise on its latents.

    `most` is the noise's largest standard deviation, in units of the latents' own.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    made = []
    for row in rows:
        latents = vae.encode(scaled(row)).latent_dist.mean
        noise = torch.randn(1, *latents.shape[1:]) * latents.std() * most * torch.rand(1)
        made.append(((vae.decode(latents + noise).sample.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.stack(made)


@torch.no_grad()
def _accuracies(network: AttributeNet, work: Path) -> dict[str, list[float]]:
    """Held-out accuracy of each attribute: on drawings, and on their round trips through the autoencoder."""
    x, wanted = pictures("heldout", work, 1000)
    y = classes(wanted)
    both = [network(scaled(seen)) for seen in (x, round_trips(work, x))]
    return {
        key: [round(float((logits[key].argmax(1) == y[:, place]).float().mean()), 4) for logits in both]
        for place, key in enumerate(VALUES)
    }


def train(work: Path) -> None:
    """All three, those already made left alone."""
    for part in (alignment, realism, aesthetics):
        if not (work / "scorers" / f"{part.__name__}.safetensors").exists():
            part(work)
