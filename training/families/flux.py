"""FLUX.1, dev and schnell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.families.family import Family, Tensors, cut_captions

if TYPE_CHECKING:
    from torch import Tensor


class Flux(Family):
    """T5 tokens and CLIP's pooled output; latents packed 2 by 2; a time shift that grows with the tokens."""

    pipeline_class = "FluxPipeline"
    transformer_class = "FluxTransformer2DModel"
    encoder_parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    longest_text = 512
    caption_dropout = 0.0

    def encode_captions(self, pipeline: Any, captions: list[str], longest: int, device: Any) -> dict[str, Tensor]:
        """T5 tokens, (N, longest, D), and CLIP's pooled output."""
        embeddings, pooled, _ = pipeline.encode_prompt(captions, None, device=device, max_sequence_length=longest)
        truncated = cut_captions(pipeline.tokenizer_2, captions, longest)
        return {"embeddings": embeddings, "pooled": pooled, "truncated": truncated}

    def told(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensors, guidance: float | Tensor) -> dict[str, Any]:
        """See `Family.told`."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        batch, text, grid = len(noisy), conditioning["embeddings"], self.grid(*noisy.shape[-2:])
        return {
            "pooled_projections": conditioning["pooled"].to(noisy.dtype),
            "timestep": timesteps / 1000,
            "img_ids": FluxPipeline._prepare_latent_image_ids(batch, *grid, noisy.device, noisy.dtype),
            "txt_ids": text.new_zeros(text.shape[1], 3),
            "guidance": timesteps.new_ones(batch) * guidance if self.config.get("guidance_embeds") else None,
        }
