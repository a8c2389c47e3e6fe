"""The frozen parts of an SD3 bundle, and its MM-DiT: weights from safetensors only, from local folders only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.bundle import check_bundle


def load_transformer(path: Path) -> Any:
    """The bundle's MM-DiT (diffusers' SD3Transformer2DModel) in fp32, in training mode."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(
        path, subfolder="transformer", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    return model.float().train()


@dataclass(frozen=True)
class TextBatch:
    """Conditioning of N captions."""

    embeddings: Tensor
    """Both CLIPs' last hidden state but one, side by side: (N, L, D1 + D2), not yet padded to the MM-DiT."""
    pooled: Tensor
    """Both CLIPs' projected pooled output: (N, P1 + P2)."""
    truncated: int
    """How many captions were longer than the encoders read."""


class Encoders:
    """The frozen VAE and CLIPs of a bundle."""

    def __init__(self, path: Path) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        check_bundle(path)
        self.vae = _frozen(
            AutoencoderKL.from_pretrained(path, subfolder="vae", use_safetensors=True, local_files_only=True)
        )
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(path / part, local_files_only=True) for part in ("tokenizer", "tokenizer_2")
        ]
        self.text_encoders = [
            _frozen(CLIPTextModelWithProjection.from_pretrained(path / part, use_safetensors=True))
            for part in ("text_encoder", "text_encoder_2")
        ]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' posterior, scaled as the MM-DiT sees them.

        ``pixels``: (B, 3, H, W) in [-1, 1]; gives two (B, C, h, w), fp32.
        """
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> TextBatch:
        """What StableDiffusion3Pipeline.encode_prompt computes, without its padding and zero tokens."""
        hidden, pooled, truncated = [], [], 0
        length = self.tokenizers[0].model_max_length
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(
                list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output[0])
            truncated = max(truncated, sum(len(row) > length for row in tokenizer(list(captions)).input_ids))
        return TextBatch(torch.cat(hidden, dim=-1), torch.cat(pooled, dim=-1), truncated)


def _frozen(model: Any) -> Any:
    return model.float().eval().requires_grad_(False)
