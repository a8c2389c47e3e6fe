"""Tiny random bundles of each family's real classes: 32 px pictures, latents 8 by 8, 3 joint blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.training.tiny import clip_text, save_bundle, save_clip_tokenizer

SCHEDULE = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "max_shift": 1.15}
"""As FLUX and Qwen-Image shift, for pictures of this size."""


def save_sd3(path: Path) -> Path:
    """Without T5."""
    return save_bundle(path)


def save_sd3_with_t5(path: Path) -> Path:
    """With T5, of the MM-DiT's text width."""
    from diffusers import StableDiffusion3Pipeline

    save_bundle(path)
    whole = StableDiffusion3Pipeline.from_pretrained(path, text_encoder_3=None, tokenizer_3=None)
    tokenizer, encoder = t5(40)
    whole.register_modules(text_encoder_3=encoder, tokenizer_3=tokenizer)
    whole.save_pretrained(path)
    return path


def save_flux(path: Path, guided: bool = True) -> Path:
    """Guidance-distilled, as FLUX.1 dev is, unless told otherwise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    size = save_clip_tokenizer(path / "tokenizer")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer, encoder = t5(24)
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=vae(),
        text_encoder=CLIPTextModel(clip_text(size)),
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    ).save_pretrained(path)
    return path


def save_qwen_image(path: Path) -> Path:
    """With a text encoder that reads bytes."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 1.2, 0.8],
    )
    tokenizer, config = qwen_text(16)
    QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=autoencoder,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
    ).save_pretrained(path)
    return path


def vae() -> Any:
    """An AutoencoderKL that makes 4 by 4 pixels one latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
        scaling_factor=1.3,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def t5(width: int) -> tuple[Any, Any]:
    """A T5 tokenizer that spells, and an encoder for it."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = ["▁", *(chr(code) for code in range(97, 123)), ","]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    config = T5Config(
        vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5Tokenizer(vocab=vocabulary, extra_ids=0), T5EncoderModel(config)


def qwen_text(width: int) -> tuple[Any, Any]:
    """A Qwen tokenizer that reads bytes, and the configuration of a model for it."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2_5_VLConfig, Qwen2Tokenizer

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": 256,
            "eos_token_id": 256,
            "pad_token_id": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        image_token_id=1,
        video_token_id=1,
        vision_start_token_id=1,
        vision_end_token_id=1,
    )
    return Qwen2Tokenizer(vocab=vocabulary, merges=[]), config
