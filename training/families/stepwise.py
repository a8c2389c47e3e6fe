"""Drawing one denoising step at a time, so that pictures of different requests can share a forward of the MM-DiT.

Every picture of a batch has its own noise level, seed and guidance. Step by step the outcome is that of the family's
pipeline, called for the picture alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


class Stepwise(ABC):
    """What one step needs to know of a family; latents are (B, C, h, w), unpacked, in every family."""

    unconditional: ClassVar[str | None] = None
    """The prompt that classifier-free guidance leads away from, and that dropped captions are trained on; None: the
    MM-DiT itself is told the guidance."""
    most_text: ClassVar[int] = 512
    """The largest ``max_sequence_length`` that the pipeline takes."""
    mixes_lengths: ClassVar[bool] = False
    """Whether texts of different lengths may share a batch, because padding is masked."""
    even_levels: ClassVar[bool] = True
    """Whether the pipeline gives the scheduler levels that fall evenly from 1 to 1/n; else it chooses them itself."""

    config: dict[str, Any]
    vae_config: dict[str, Any]

    @property
    @abstractmethod
    def vae_factor(self) -> int:
        """Pixels in a latent's height and width."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Height and width, in pixels, of the pictures that a plain call of the pipeline draws."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens for latents of ``height`` by ``width``."""

    @property
    def latent_channels(self) -> int:
        """C: latents are packed 2 by 2 before most MM-DiTs."""
        return int(self.config["in_channels"]) // 4

    @property
    def largest_side(self) -> int:
        """Most pixels in a picture's height or width: twice as many as in a plain call's."""
        return 2 * self.resolution

    def first_latents(self, seed: int, height: int, width: int, dtype: Any) -> Tensor:
        """Noise of a picture of ``height`` by ``width`` pixels, (1, C, h, w), drawn on the CPU as the pipeline does."""
        import torch

        shape = (1, self.latent_channels, height // self.vae_factor, width // self.vae_factor)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)

    def noise_levels(self, scheduler: Any, steps: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The course of one picture, from a copy of ``scheduler``, whose own state stays as it is.

        Returns:
            timesteps (steps,) and σ (steps + 1,), float32, on the CPU.
        """
        import numpy as np
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        own = type(scheduler).from_config(scheduler.config)
        config, more = own.config, {}
        if config.use_dynamic_shifting:
            rows, columns = self.grid(height // self.vae_factor, width // self.vae_factor)
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            more["mu"] = calculate_shift(rows * columns, *(config[name] for name in names))
        if self.even_levels:
            own.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **more)
        else:
            own.set_timesteps(steps, **more)
        return own.timesteps, own.sigmas

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): all (B, C, h, w), ``scale`` (B, 1, 1, 1)."""
        return unconditional + scale * (conditional - unconditional)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels of ``latents``, (B, 3, H, W), in [-1, 1] or a little beyond."""
        scaled = latents / self.vae_config["scaling_factor"] + (self.vae_config.get("shift_factor") or 0.0)
        pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        return pixels
