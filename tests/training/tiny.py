"""Tiny random models of the real classes, and a small corpus: seconds to build, nothing to download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from lineage.digests import digest_file

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

WORDS = ["a", "portrait", "with", "glasses", "beard", "red", "blue", "green", "shirt", "no", "and"]
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
TEXT_LENGTH = 40
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
"""Diffusers asks to be told that the T5 is absent, although the bundle's index says so."""


def save_clip_tokenizer(path: Path) -> int:
    """A CLIP tokenizer that spells: one token a letter. Gives the size of its vocabulary."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)] + [","]
    names = ["<|pad|>", "<|startoftext|>", "x?", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=TEXT_LENGTH,
    )
    tokenizer.save_pretrained(path)
    return len(names)


def clip_text(vocabulary: int, **more: int) -> CLIPTextConfig:
    """The configuration of a CLIP text encoder of width 16 for that many tokens."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=3,
        **more,
    )


def save_bundle(path: Path, seed: int = 0) -> Path:
    """A random StableDiffusion3Pipeline folder: 32 px pictures, 16 image tokens, 3 joint blocks."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(seed)
    size = save_clip_tokenizer(path / "tokenizer")
    text = clip_text(size, projection_dim=12)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
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
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(path)
    return path


def save_teacher(path: Path, seed: int = 1, padding_side: str = "right", patch_size: int = 8) -> Path:
    """A random SigLIP folder: 32 px pictures, 4 x 4 patches (or finer), 16 features, word-level tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

    torch.manual_seed(seed)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side=padding_side
    )
    tokenizer.save_pretrained(path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=SiglipTextConfig(
            vocab_size=len(vocabulary),
            max_position_embeddings=12,
            projection_size=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            **sizes,
        ).to_dict(),
        vision_config=SiglipVisionConfig(image_size=32, patch_size=patch_size, **sizes).to_dict(),
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
    model.save_pretrained(path)
    return path


def save_pictures(folder: Path, count: int = 24) -> list[dict[str, object]]:
    """Rows of a manifest, with their pictures: a coloured shirt, sometimes glasses."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        glasses = number % 2 == 0
        noise = np.random.default_rng(number).integers(200, 256, (32, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((0, 22, 31, 31), fill=COLOURS[colour])
        if glasses:
            pen.ellipse((6, 8, 14, 16), outline=(0, 0, 0))
            pen.ellipse((18, 8, 26, 16), outline=(0, 0, 0))
        path = folder / f"{number:04d}.png"
        picture.save(path)
        text = f"a portrait, {colour} shirt" + (", with glasses" if glasses else "")
        rows.append(
            {
                "file_name": path.name,
                "sha256": digest_file(path),
                "bytes": path.stat().st_size,
                "text": text,
                "license": "CC0",
                "consent": "not applicable",
                "source": "drawn by the tests",
                "uri": f"file://{path}",
            }
        )
    return rows


def save_validated(folder: Path, rows: list[dict[str, object]]) -> Path:
    """A validated artifact with these rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder


def respoilt(features: Path, part: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change every row of a part of a features folder, with digests that hold."""
    from training.encode.info import CORPUS, digest_of, keys_of, read_info, write_info
    from training.encode.store import PartStore, Rows, find_rows

    place = features / part
    keys = list(find_rows(place))
    rows = [{name: t.clone() for name, t in Rows(place, keys)[number].items()} for number in range(len(keys))]
    shutil.rmtree(place)
    store = PartStore(place)
    for key, row in zip(keys, rows, strict=True):
        change(row)
        store.add(key, row)
    store.flush()
    info, corpus = read_info(features), json.loads((features / CORPUS).read_text())
    write_info(features, info.model_copy(update={"rows": info.rows | {part: digest_of(place, keys_of(corpus, part))}}))


def save_dinov2(path: Path, seed: int = 2) -> Path:
    """A random DINOv2 folder: 56 px pictures, 4 x 4 patches of 14 px, a class token, 2 layers of 16 features."""
    import json

    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **sizes)).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return path
