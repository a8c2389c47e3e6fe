"""Scorers that judge one picture at a time: CLIPScore, PickScore, the LAION aesthetic head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from components.evaluate.evaluation_set import Prompt
from components.evaluate.scorers.backbones import BATCH, Backbone, unit
from lineage.digests import digest_path

Scores = dict[str, NDArray[np.float64]]


class ClipScore(Backbone):
    """CLIPScore: 100 · cos(picture, prompt) (J. Hessel et al., arXiv 2104.08718, as torchmetrics scales it).

    Prompts longer than CLIP's text window are cut.
    """

    name, axis, higher_is_better, kind = "clip-score", "alignment", True, "CLIPModel"

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        super().__init__(path)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Scores:
        """One score a picture, (N,)."""
        parts = []
        for number, pixels in enumerate(self.pixels(images)):
            texts = [prompt.text for prompt in prompts[number * BATCH : (number + 1) * BATCH]]
            seen = self._seen(pixels, texts)
            parts.append((seen.image_embeds * seen.text_embeds).sum(dim=1).double().cpu() * self._scale())
        return {self.axis: torch.cat(parts).numpy() if parts else np.zeros(0)}

    def _scale(self) -> float:
        return 100.0

    @torch.no_grad()
    def _seen(self, pixels: torch.Tensor, texts: list[str]) -> Any:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return self.model(pixel_values=pixels, **tokens.to(self.device))


class PickScore(ClipScore):
    """PickScore: a CLIP tuned to people's choices between pictures, its logit scale · cos(picture, prompt).

    Y. Kirstain et al., Pick-a-Pic, arXiv 2305.01569.
    """

    name, axis = "pick-score", "aesthetics"

    def _scale(self) -> float:
        return float(self.model.logit_scale.exp())


class LaionAesthetic(Backbone):
    """A LAION aesthetic predictor: linear layers on a CLIP's unit-length image embedding.

    ``path`` has ``backbone/`` (a CLIP checkpoint) and ``head.safetensors``: the layers' ``weight`` and ``bias``, in
    the order of their names' numbers. The published heads are pickles: convert them once, where you trust them.
    """

    name, axis, higher_is_better, kind = "laion-aesthetic", "aesthetics", True, "CLIPModel"

    def __init__(self, path: str) -> None:
        super().__init__(Path(path) / "backbone")
        self._layers = _linear_layers(Path(path) / "head.safetensors")
        self.digest = digest_path(path)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Scores:
        """One score a picture, (N,); prompts are not looked at."""
        value = unit(self.features(images)) if len(images) else np.zeros((0, self._layers[0][0].shape[1]))
        for weight, bias in self._layers:
            value = value @ weight.T + bias
        return {self.axis: value[:, 0]}


def _linear_layers(path: Path) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The layers of a head. Its dropout does nothing when judging, and it has no other non-linearity."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no aesthetic head at {path}; convert the published one to safetensors")
    tensors = {name: tensor.double().numpy() for name, tensor in load_file(path).items()}
    stems = {name.removesuffix("weight") for name in tensors if name.endswith("weight")}
    order = sorted(stems, key=lambda stem: [int(part) for part in stem.split(".") if part.isdigit()])
    layers = [(tensors[f"{stem}weight"], tensors[f"{stem}bias"]) for stem in order]
    if not layers or layers[-1][0].shape[0] != 1:
        raise ValueError(f"{path} is no aesthetic head: its last layer must give one number")
    return layers
