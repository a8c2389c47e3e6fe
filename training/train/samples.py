"""Pictures drawn with the averaged weights while training runs, by the pipeline that will use them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor

from training.families import family_of
from training.families.family import PRECISIONS, weights_in
from training.settings import TrainingSettings
from training.train import lora


def take_weights(transformer: Any, settings: TrainingSettings, weights: Mapping[str, Tensor]) -> None:
    """Have a pipeline's MM-DiT draw with ``weights`` of what is trained, in the base model's number format, as a
    candidate does."""
    folder, own = settings.base_model / "transformer", transformer.state_dict()
    if settings.adapter:
        weights = lora.merged(folder, weights, settings.adapter)
    for name, stream in weights_in(folder):
        if name in weights:
            own[name].copy_(weights[name].to(stream.get_tensor(name).dtype))


class SampleGrid:
    """Draws the prompts of the settings, each time from the same noise, in one picture."""

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._family = family_of(settings.base_model)
        self._pipeline: Any = None

    def draw(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Draw with ``weights`` of the backbone and write a PNG to ``path``."""
        if self._pipeline is None:
            self._pipeline = self._load()
        samples, transformer = self._settings.samples, self._pipeline.transformer
        take_weights(transformer, self._settings, weights)
        asked, pictures = self._family.sampling_arguments(self._sampling(), 1), []
        for number, prompt in enumerate(samples.prompts):
            generator = torch.Generator().manual_seed(samples.seed + number)
            pictures += self._pipeline(prompt=[prompt], generator=[generator], **asked).images
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = math.ceil(math.sqrt(len(pictures)))
        pictures += [Image.new("RGB", pictures[0].size, "white")] * (-len(pictures) % columns)
        make_image_grid(pictures, len(pictures) // columns, columns).save(path)

    def _sampling(self) -> dict[str, Any]:
        """How the pipeline is called: as long a text, and as large a picture, as was trained on."""
        settings = self._settings
        without_t5 = "text_encoder_3" in self._family.absent
        longest = settings.max_sequence_length or self._family.longest_text
        width, height = settings.buckets[0] if settings.buckets else (None, None)
        return {
            "num_inference_steps": settings.samples.steps,
            "guidance_scale": settings.samples.guidance,
            "max_sequence_length": settings.null_tokens[1] if without_t5 else longest,
            "width": width,
            "height": height,
        }

    def _load(self) -> Any:
        pipeline = self._family.load_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        if self._device.type != "cpu":
            # The device is full of what trains: one part of the pipeline at a time beside it, in the same format.
            pipeline.to(getattr(torch, PRECISIONS[self._settings.precision]))
            pipeline.enable_model_cpu_offload(device=self._device)
        return pipeline
