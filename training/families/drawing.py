"""Drawing with a bundle: one way for the judges, for the registered model and for whoever serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError
from training.families import family_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

PRECISION = "float32"
"""PyTorch's name of the number format that weights are loaded in where nobody says otherwise."""
PRECISIONS = (PRECISION, "bfloat16", "float16")
BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
"""What loading a bundle that is not whole ends in."""


class Drawer:
    """A bundle, loaded with the family's own way to sample.

    Args:
        precision: PyTorch's name of the weights' number format.
        device: ``auto`` is the GPU where there is one.
        offload: keep on the GPU only the part that is at work.

    Raises:
        TrainingError: it does not load.
    """

    def __init__(self, bundle: Path, precision: str = PRECISION, device: str = "auto", offload: bool = False) -> None:
        import torch

        try:
            self._family = family_of(bundle)
            self.pipeline = self._family.load_pipeline(precision)
        except BROKEN as error:
            raise TrainingError(f"the bundle at {bundle} cannot be read: {error}; restore it") from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if offload and device != "cpu":
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], sampling: Mapping[str, Any]) -> list[Image.Image]:
        """One picture for each prompt, from noise that its seed alone decides.

        Args:
            sampling: ``num_inference_steps``, ``guidance_scale``, ``max_sequence_length``, ``height``, ``width``; a
                ``precision`` among them was for whoever loaded the bundle.

        Raises:
            TrainingError: a picture holds NaN: it names prompt and seed.
        """
        import torch

        drawn = self.pipeline(
            prompt=list(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **self._family.sampling_arguments({k: v for k, v in sampling.items() if k != "precision"}, len(prompts)),
        ).images
        for prompt, seed, pixels in zip(prompts, seeds, drawn, strict=True):
            if not is_finite(pixels):
                raise TrainingError(
                    f"this model draws NaN for the prompt {prompt!r} and seed {seed}: its weights are broken"
                )
        return [picture(pixels) for pixels in drawn]


def is_finite(pixels: NDArray[np.float32]) -> bool:
    """Whether no number of a picture is NaN or infinite."""
    import numpy as np

    return bool(np.isfinite(pixels).all())


def picture(pixels: NDArray[np.float32]) -> Image.Image:
    """A picture of (H, W, 3) in [0, 1]."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((pixels * 255).round().astype(np.uint8))
