"""Stable Diffusion 3 and 3.5, with and without T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.families.family import Family, Tensors, cut_captions

if TYPE_CHECKING:
    from torch import Tensor


class StableDiffusion3(Family):
    """Two CLIPs and perhaps a T5; tokens are the MM-DiT's own patches; a static time shift."""

    pipeline_class = "StableDiffusion3Pipeline"
    transformer_class = "SD3Transformer2DModel"
    encoder_parts = (
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    optional_parts = ("text_encoder_3", "tokenizer_3")
    longest_text = 256
    unconditional = ""
    even_levels = False

    @property
    def patch(self) -> int:
        """The MM-DiT's patch size."""
        return int(self.config["patch_size"])

    @property
    def resolution(self) -> int:
        """What the MM-DiT was made for."""
        return int(self.config["sample_size"]) * self.vae_factor

    @property
    def latent_channels(self) -> int:
        """C: the MM-DiT cuts latents itself."""
        return int(self.config["in_channels"])

    @property
    def largest_side(self) -> int:
        """As far as the table of positions reaches."""
        return int(self.config["pos_embed_max_size"]) * self.patch * self.vae_factor

    def encode_captions(self, pipeline: Any, captions: list[str], longest: int, device: Any) -> dict[str, Tensor]:
        """CLIP tokens, and after them T5's. Without a T5 only the CLIPs' own width is kept, and no zero token."""
        has_t5 = "text_encoder_3" in self.parts
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            captions,
            None,
            None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=longest if has_t5 else 0,
        )
        if has_t5:
            truncated = cut_captions(pipeline.tokenizer_3, captions, longest)
        else:
            clips = (pipeline.text_encoder, pipeline.text_encoder_2)
            embeddings = embeddings[..., : sum(clip.config.hidden_size for clip in clips)].contiguous()
            length = pipeline.tokenizer_max_length
            first, second = (cut_captions(t, captions, length) for t in (pipeline.tokenizer, pipeline.tokenizer_2))
            truncated = first | second
        return {"embeddings": embeddings, "pooled": pooled, "truncated": truncated}

    def prepare(self, conditioning: dict[str, Tensor], nulls: int) -> dict[str, Tensor]:
        """Without a T5: zeros to the right up to the MM-DiT's text width, and ``nulls`` zero tokens at the end."""
        from torch.nn import functional

        embeddings = conditioning["embeddings"]
        if "text_encoder_3" not in self.parts:
            wider = int(self.config["joint_attention_dim"]) - embeddings.shape[-1]
            embeddings = functional.pad(embeddings, (0, wider, 0, nulls))
        return conditioning | {"embeddings": embeddings}

    def told(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensors, guidance: float | Tensor) -> dict[str, Any]:
        """See `Family.told`."""
        return {"pooled_projections": conditioning["pooled"].to(noisy.dtype), "timestep": timesteps}

    def pack(self, latents: Tensor) -> Tensor:
        """The MM-DiT cuts latents itself."""
        return latents

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """See `pack`."""
        return tokens
