"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.families.family import Family, Tensors, cut_captions

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
        middle, spread = self._spread(mean)
        return (mean - middle) / spread, std / spread

    def _spread(self, like: Tensor) -> list[Tensor]:
        """Mean and standard deviation of each channel, (C, 1, 1), in the format of ``like``."""
        return [like.new_tensor(self.vae_config[name])[:, None, None] for name in ("latents_mean", "latents_std")]

    def prepare(self, conditioning: dict[str, Tensor], nulls: int) -> dict[str, Tensor]:
        """Cut to the longest caption of the batch."""
        length = int(conditioning["mask"].sum(dim=1).max())
        return {name: tensor[:, :length] for name, tensor in conditioning.items()}

    def told(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensors, guidance: float | Tensor) -> dict[str, Any]:
        """See `Family.told`."""
        mask = conditioning["mask"].bool()
        return {
            "encoder_hidden_states_mask": None if mask.all() else mask,
            "timestep": timesteps / 1000,
            "img_shapes": [[(1, *self.grid(*noisy.shape[-2:]))]] * len(noisy),
        }

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """As the pipeline: each token of the guided velocity gets the length that the conditional one has."""
        import torch

        guided = super().guide(conditional, unconditional, scale)
        tokens = self.pack(guided)
        wanted, found = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (self.pack(conditional), tokens))
        return self.unpack(tokens * (wanted / found), *guided.shape[-2:])

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `Family.decode`; the VAE gives a film of one frame."""
        middle, spread = self._spread(latents)
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
