"""The autoencoder: 64 x 64 pictures to 16 x 16 latents and back.

It is the ceiling of everything drawn later, so it sees the full vocabulary (splits `base` and `text`), and its
decoder sees slightly noisy latents, as it will when a transformer makes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from examples.avatars.train.loop import Average, Progress, batches, learning_rate, set_learning_rate
from examples.avatars.train.pictures import pictures, scaled

SEED = 1
LATENT_NOISE = 0.05
"""Standard deviation of the noise on latents in training, in units of the latents' own."""


def build(channels: int = 8, widths: tuple[int, ...] = (16, 32, 64)) -> AutoencoderKL:
    """A fresh autoencoder, 4 x 4 pixels to one latent of `channels` numbers."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


class Reconstruction(nn.Module):
    """One pass: pictures (B, 3, 64, 64) in [-1, 1] to (loss, pixel loss)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.vae.encoder(x).chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        spread = (torch.exp(log_variance) + (LATENT_NOISE * mean.detach().std()) ** 2).sqrt()
        y = self.vae.decoder(mean + spread * noise)
        pixel = F.l1_loss(y, x) + F.mse_loss(y, x)
        edges = sum(F.l1_loss(y.diff(dim=axis), x.diff(dim=axis)) for axis in (2, 3))
        kl = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).mean()
        return pixel + 0.5 * edges + 1e-5 * kl, pixel


def train(
    work: Path,
    steps: int = 2800,
    batch: int = 8,
    channels: int = 8,
    peak: float = 2e-3,
    start: Path | None = None,
) -> None:
    """Trains and writes `work/vae`, its averaged weights, every 200 steps; `start` is a folder to go on from."""
    torch.manual_seed(SEED)
    x = torch.cat([pictures(split, work)[0] for split in ("base", "text")])
    network = Reconstruction(build(channels) if start is None else AutoencoderKL.from_pretrained(start))
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.0)
    average, progress = Average(network, 0.998), Progress("vae", steps)
    for step, rows in batches(len(x), batch, steps, SEED):
        set_learning_rate(optimizer, learning_rate(step, steps, peak))
        real = scaled(x[rows])
        loss, pixel = network(real, torch.randn(batch, channels, 16, 16))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network, step)
        progress(step, loss=loss.item(), pixel=pixel.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save(average.applied(network).vae, x, work / "vae")


@torch.no_grad()
def save(vae: AutoencoderKL, x: torch.Tensor, folder: Path) -> None:
    """Writes the autoencoder with its latents' shift and scale, and prints its PSNR."""
    sample = scaled(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:256]])
    latents = vae.encode(sample).latent_dist.mean
    error = (vae.decode(latents).sample.clamp(-1, 1) - sample).pow(2).mean(dim=(1, 2, 3)) / 4
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    vae.save_pretrained(folder)
    print(f"vae PSNR {(-10 * error.log10()).mean():.2f} dB, latent std {latents.std():.3f}", flush=True)
