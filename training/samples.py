"""Pictures drawn with the averaged weights while training runs, by the pipeline that will use them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from training import lora
from training.families import family_of
from training.settings import TrainingSettings


class SampleGrid:
    """Draws the prompts of the settings, each time from the same noise, in one picture."""

    def __init__(self, settings: TrainingSettings, device: Any) -> None:
        self._settings, self._device = settings, device
        self._family = family_of(settings.base_model)
        self._pipeline: Any = None

    def draw(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Draw with ``weights`` of the backbone and write a PNG to ``path``."""
        import torch

        if self._pipeline is None:
            self._pipeline = self._load()
        samples, transformer = self._settings.samples, self._pipeline.transformer
        if adapter := self._settings.adapter:
            weights = lora.merged(self._settings.base_model / "transformer", weights, adapter)
        own = transformer.state_dict()
        transformer.load_state_dict({name: weights.get(name, tensor) for name, tensor in own.items()})
        without_t5 = "text_encoder_3" in self._family.absent
        sampling = {
            "num_inference_steps": samples.steps,
            "guidance_scale": samples.guidance,
            "max_sequence_length": self._settings.null_tokens[1] if without_t5 else self._family.longest_text,
        }
        pictures = [
            self._pipeline(
                prompt=[prompt],
                generator=[torch.Generator().manual_seed(samples.seed + number)],
                **self._family.sampling_arguments(sampling, 1),
            ).images[0]
            for number, prompt in enumerate(samples.prompts)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        _grid(pictures).save(path)

    def _load(self) -> Any:
        pipeline = self._family.load_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device)


def _grid(pictures: list[Image.Image]) -> Image.Image:
    """The pictures in rows, as square as may be."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % columns * width, number // columns * height))
    return grid
