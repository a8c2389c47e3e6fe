"""FLUX.1, dev and schnell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.families.family import Family, cut_captions

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

    def predict(
        self,
        backbone: Any,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Mapping[str, Tensor],
        guidance: float | Tensor,
    ) -> Tensor:
        """See `Family.predict`."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        dtype, device = backbone.dtype, noisy.device
        batch, channels, height, width = noisy.shape
        embeddings = conditioning["embeddings"].to(dtype)
        packed = FluxPipeline._pack_latents(noisy.to(dtype), batch, channels, height, width)
        velocity = backbone(
            hidden_states=packed,
            encoder_hidden_states=embeddings,
            pooled_projections=conditioning["pooled"].to(dtype),
            timestep=timesteps / 1000,
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, *self.grid(height, width), device, dtype),
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            guidance=timesteps.new_ones(batch) * guidance if self.config.get("guidance_embeds") else None,
            return_dict=False,
        )[0]
        unpacked: Tensor = FluxPipeline._unpack_latents(velocity, height, width, 1)
        return unpacked
