"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.families.family import Family, cut_captions

if TYPE_CHECKING:
    from torch import Tensor


class QwenImage(Family):
    """A vision-language model reads the caption inside a chat template; the MM-DiT never sees the template.

    Latents are packed 2 by 2, normalised channel by channel; the time shift grows with the tokens. Texts of a batch
    differ in length: shorter ones are padded and masked.
    """

    pipeline_class = "QwenImagePipeline"
    transformer_class = "QwenImageTransformer2DModel"
    encoder_parts = ("vae", "text_encoder", "tokenizer")
    longest_text = 512
    texts_at_once = 8
    unconditional = " "
    most_text = 1024
    mixes_lengths = True

    @property
    def vae_factor(self) -> int:
        """Pixels in a latent's height and width."""
        return 1 << len(self.vae_config["temperal_downsample"])

    def load_pipeline(self, precision: str = "float32", **parts: Any) -> Any:
        """See `Family.load_pipeline`; the language model comes without its head, of whose logits (a vocabulary for
        every token) the pipeline makes no use."""
        from torch import nn

        pipeline = super().load_pipeline(precision, **parts)
        pipeline.text_encoder.lm_head = nn.Identity()
        return pipeline

    def encode_captions(self, pipeline: Any, captions: list[str], longest: int, device: Any) -> dict[str, Tensor]:
        """Hidden states of the caption's tokens, (N, L, D), and which of them are padding's: mask (N, L), 1 or 0."""
        embeddings, mask = pipeline.encode_prompt(captions, device=device, max_sequence_length=longest)
        if mask is None:  # so the pipeline says that no caption is padded
            mask = embeddings.new_ones(embeddings.shape[:2])
        template, start = pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx
        whole = [template.format(caption) for caption in captions]
        truncated = cut_captions(pipeline.tokenizer, whole, longest + start)
        return {"embeddings": embeddings, "mask": mask.long(), "truncated": truncated}

    def posterior(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Family.posterior`; the VAE takes a picture for a film of one frame."""
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist
        mean, std = latents.mean.float().squeeze(2), latents.std.float().squeeze(2)
        middle, spread = (
            mean.new_tensor(self.vae_config[name])[:, None, None] for name in ("latents_mean", "latents_std")
        )
        return (mean - middle) / spread, std / spread

    def prepare(self, conditioning: dict[str, Tensor], nulls: int) -> dict[str, Tensor]:
        """Cut to the longest caption of the batch."""
        length = int(conditioning["mask"].sum(dim=1).max())
        return {name: tensor[:, :length] for name, tensor in conditioning.items()}

    def predict(
        self,
        backbone: Any,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Mapping[str, Tensor],
        guidance: float | Tensor,
    ) -> Tensor:
        """See `Family.predict`."""
        from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

        dtype, mask = backbone.dtype, conditioning["mask"].bool()
        batch, channels, height, width = noisy.shape
        velocity = backbone(
            hidden_states=QwenImagePipeline._pack_latents(noisy.to(dtype), batch, channels, height, width),
            encoder_hidden_states=conditioning["embeddings"].to(dtype),
            encoder_hidden_states_mask=None if mask.all() else mask,
            timestep=timesteps / 1000,
            img_shapes=[[(1, *self.grid(height, width))]] * batch,
            return_dict=False,
        )[0]
        unpacked: Tensor = QwenImagePipeline._unpack_latents(velocity, height, width, 1).squeeze(2)
        return unpacked

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """As the pipeline: each token of the guided velocity gets the length that the conditional one has."""
        import torch

        guided = super().guide(conditional, unconditional, scale)
        batch, channels, height, width = guided.shape
        tokens = (batch, channels, height // 2, 2, width // 2, 2)
        lengths = [
            torch.linalg.vector_norm(velocity.reshape(tokens), dim=(1, 3, 5), keepdim=True)
            for velocity in (conditional, guided)
        ]
        scaled: Tensor = guided.reshape(tokens) * (lengths[0] / lengths[1])
        return scaled.reshape(guided.shape)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `Stepwise.decode`; the VAE gives a film of one frame."""
        middle, spread = (
            latents.new_tensor(self.vae_config[name])[:, None, None] for name in ("latents_mean", "latents_std")
        )
        frames = (latents * spread + middle).unsqueeze(2).to(vae.dtype)
        pixels: Tensor = vae.decode(frames, return_dict=False)[0][:, :, 0]
        return pixels

    @classmethod
    def sampling_arguments(cls, sampling: Mapping[str, Any], count: int) -> dict[str, Any]:
        """``guidance_scale`` is the pipeline's ``true_cfg_scale``, which needs a negative prompt to work on."""
        arguments = dict(sampling)
        scale = arguments.pop("guidance_scale", 1.0)
        return arguments | (
            {"true_cfg_scale": scale, "negative_prompt": [cls.unconditional] * count} if scale > 1 else {}
        )
