"""The teacher: a frozen SigLIP dual encoder, read for patches and for phrases in one space.

It is run once over the data, before training, and never takes part in the training graph. Fixed-resolution
SigLIP 2 checkpoints are of transformers' `siglip` classes too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.errors import TrainingError
from training.families.family import weights_in


class Teacher:
    """Patch and text features of a SigLIP checkpoint folder (model, tokenizer)."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer, SiglipModel

        if not (path / "config.json").is_file():
            raise TrainingError(f"no teacher at {path}: config.json is missing; set training.teacher")
        self.model: Any = SiglipModel.from_pretrained(path, use_safetensors=True, local_files_only=True)
        self.model = self.model.float().eval().requires_grad_(False).to(device())
        self.path = path
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        vision, text = self.model.config.vision_config, self.model.config.text_config
        if vision.hidden_size != text.projection_size:
            raise TrainingError(
                f"the teacher at {path} has {vision.hidden_size} vision and {text.projection_size} text features: "
                "its patches and phrases do not share a space; use a SigLIP checkpoint whose sizes agree"
            )
        self.width = int(vision.hidden_size)
        self.resolution = int(vision.image_size)
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self._length = int(text.max_position_embeddings)
        self._mean, self._std = normalisation(path)
        self._check_padding()

    @property
    def temperature(self) -> float:
        """τ = 1 / exp(logit scale): what the teacher itself divides similarities by."""
        return temperature_of(self.path)

    def _check_padding(self) -> None:
        """SigLIP pools the last token and was trained with padding on the right: elsewhere it reads nonsense."""
        ids = self._tokenize(["a"])[0].tolist()
        pad = self.tokenizer.pad_token_id
        if self.tokenizer.padding_side != "right" or (ids[0] == pad and ids[-1] != pad):
            raise TrainingError(
                f"the teacher's tokenizer ({type(self.tokenizer).__name__}) pads on the left, but SigLIP reads its "
                'text from the last position and needs padding on the right; set "padding_side": "right" in its '
                "tokenizer_config.json"
            )

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        lowered = [text.lower() for text in texts]
        tokens = self.tokenizer(
            lowered, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Pooled text embeddings, (N, d) fp32, each text encoded as its own string, without attention mask."""
        ids = self._tokenize(texts).to(self.model.device)
        pooled: Tensor = self.model.text_model(input_ids=ids).pooler_output
        return pooled.cpu()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """V: every patch in the text-aligned space, (B, T_v, d) fp32.

        Each patch passes alone through the attention-pool head. Attention over a single token is its value
        path, so no probe and no softmax is left of it. ``pixels`` come from `prepare`.
        """
        vision = self.model.vision_model
        head = vision.head
        patches = vision(pixel_values=pixels.to(self.model.device)).last_hidden_state
        weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
        values = functional.linear(patches, weight[-self.width :], bias[-self.width :])
        pooled = head.attention.out_proj(values)
        aligned: Tensor = pooled + head.mlp(head.layernorm(pooled))
        return aligned.cpu()

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures as the vision tower takes them: (B, 3, resolution, resolution), normalised."""
        return pixel_tensor(images, self._mean, self._std, self.resolution)


def temperature_of(path: Path) -> float:
    """τ = 1 / exp(logit scale) of the SigLIP checkpoint in folder ``path``.

    Raises:
        TrainingError: it has none.
    """
    for name, stream in weights_in(path):
        if name == "logit_scale":
            return float(torch.exp(-stream.get_tensor(name).float()))
    raise TrainingError(f"the teacher at {path} has no logit_scale; set training.teacher to a SigLIP checkpoint")


def device() -> torch.device:
    """Where frozen models run: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pixel_tensor(
    images: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float], side: int | None = None
) -> Tensor:
    """RGB pictures as (B, 3, H, W) fp32: values in [0, 1], less ``mean``, over ``std``.

    With ``side`` they are first resized to a square of so many pixels, whatever their shape; without, all must be of
    one size already.
    """
    import numpy as np

    if side is not None:
        size = (side, side)
        images = [i if i.size == size else i.resize(size, Image.Resampling.BICUBIC) for i in images]
    stacked = torch.from_numpy(np.stack([np.asarray(image, dtype=np.uint8) for image in images]))
    pixels = stacked.permute(0, 3, 1, 2).float() / 255
    shift, scale = torch.tensor(mean), torch.tensor(std)
    return ((pixels - shift[:, None, None]) / scale[:, None, None]).contiguous()


def normalisation(path: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the colours that the model in folder ``path`` was trained with."""
    config = path / "preprocessor_config.json"
    read = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    return read.get("image_mean", [0.5] * 3), read.get("image_std", [0.5] * 3)
