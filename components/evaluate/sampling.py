"""Draw the evaluation set's pictures with one model.

A picture depends on its prompt, its seed, the sampling settings and the weights, not on its neighbours in a batch:
its initial noise comes from its own generator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from components.evaluate.evaluation_set import EvaluationError, Prompt, Sampling
from lineage.progress import track


def sample(
    model: Path,
    samples: Sequence[tuple[Prompt, int]],
    sampling: Sampling,
    batch_size: int,
    target: Path,
    who: str,
) -> list[Path]:
    """Draw every (prompt, seed) into ``target`` as ``<prompt>-<seed>.png``; returns the files in that order.

    Raises:
        EvaluationError: the model does not load, or draws something that is not a picture (NaN).
    """
    import numpy as np
    import torch
    from diffusers import StableDiffusion3Pipeline
    from PIL import Image

    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            model, dtype=torch.float32, local_files_only=True, **_absent_parts(model)
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EvaluationError(f"the {who}'s weights at {model} do not load: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline.to(device).set_progress_bar_config(disable=True)
    target.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    for batch in track(batches, f"sampling {who}", len(samples), weight=batch_size):
        drawn = pipeline(
            prompt=[prompt.text for prompt, _ in batch],
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in batch],
            output_type="np",
            **sampling.model_dump(),
        ).images
        for (prompt, seed), pixels in zip(batch, drawn, strict=True):
            if not np.isfinite(pixels).all():
                raise EvaluationError(
                    f"the {who} draws NaN for prompt {prompt.id}, seed {seed}: its weights are broken"
                )
            files.append(target / f"{prompt.id}-{seed}.png")
            Image.fromarray((pixels * 255).round().astype(np.uint8)).save(files[-1])
    return files


def _absent_parts(model: Path) -> dict[str, None]:
    """The parts that the bundle says it has not (such as T5); diffusers wants to be told so again."""
    index = json.loads((model / "model_index.json").read_text())
    return {name: None for name, kind in index.items() if kind == [None, None]}
