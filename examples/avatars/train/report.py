"""What the base model draws: `python -m examples.avatars.train.report [--models DIR] [--picture FILE]`

Draws the evaluation prompts with their seeds, prints the accuracy on each attribute as the alignment classifier
reads it, and writes a grid of samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from examples.avatars.acceptance import MODELS, Asked
from examples.avatars.data import EVALUATION, SAMPLING, kind
from examples.avatars.portraits import CORE, VALUES, Portrait
from examples.avatars.scorers import Aesthetics, Alignment, Realism

BATCH = 20


def draw_samples(pipeline: StableDiffusion3Pipeline, asked: list[Portrait], seeds: list[int]) -> list[Image.Image]:
    """One sample for each portrait's caption and seed, with the evaluation set's options."""
    pipeline.set_progress_bar_config(disable=True)
    drawn: list[Image.Image] = []
    for start in range(0, len(asked), BATCH):
        these = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[these]]
        captions = [portrait.caption() for portrait in asked[these]]
        drawn += pipeline(captions, generator=generators, **SAMPLING).images
    return drawn


def accuracies(images: list[Image.Image], asked: list[Portrait], models: Path) -> dict[str, float]:
    """For each attribute the share of pictures that show the value asked for; `core` is the mean of the first six."""
    scorer = Alignment(str(models / "scorers" / "alignment.safetensors"))
    scores = scorer.score(images, [Asked.of(portrait) for portrait in asked])
    found = {name: float((scores[f"alignment/{name}"] > 0.5).mean()) for name in VALUES}
    return {**found, "core": float(np.mean([found[name] for name in CORE]))}


def grid(images: list[Image.Image], columns: int = 10, zoom: int = 2) -> Image.Image:
    """Pictures side by side, enlarged without smoothing."""
    edge = 64 * zoom
    sheet = Image.new("RGB", (columns * edge, -(-len(images) // columns) * edge), "white")
    for place, image in enumerate(images):
        large = image.resize((edge, edge), Image.Resampling.NEAREST)
        sheet.paste(large, (place % columns * edge, place // columns * edge))
    return sheet


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.avatars.train.report", description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--every", type=int, default=1, help="draw only every n-th prompt of each kind")
    parser.add_argument("--picture", type=Path, help="where to write the grid")
    chosen = parser.parse_args()
    pipeline = StableDiffusion3Pipeline.from_pretrained(chosen.models / "base", text_encoder_3=None, tokenizer_3=None)
    rows = [json.loads(line) for line in (EVALUATION / "prompts.jsonl").read_text("utf-8").splitlines()]
    for name in ("neither", "glasses", "beard", "both"):
        these = [row for row in rows if kind(Portrait.of(row["attributes"])) == name][:: chosen.every]
        asked = [Portrait.of(row["attributes"]) for row in these]
        images = draw_samples(pipeline, asked, [row["seeds"][0] for row in these])
        found = accuracies(images, asked, chosen.models)
        print(name, len(asked), {key: round(value, 3) for key, value in found.items()})
        for scorer in (Realism, Aesthetics):
            place = chosen.models / "scorers" / f"{scorer.axis}.safetensors"
            if place.exists():
                values = scorer(str(place)).score(images, [Asked.of(p) for p in asked])[scorer.axis]
                print(f"  {scorer.axis}: mean {values.mean():.4f}, standard deviation {values.std():.4f}")
        if name == "neither" and chosen.picture:
            chosen.picture.parent.mkdir(parents=True, exist_ok=True)
            grid(images[:40]).save(chosen.picture)


if __name__ == "__main__":
    main()
