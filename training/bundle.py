"""The SD3 bundle as a folder: whether it is one, what it says about itself. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from lineage.digests import digest_json, digest_path
from training.errors import TrainingError

ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
"""The parts that decide latents and text embeddings."""


def check_bundle(path: Path) -> None:
    """Refuse a folder that is not an SD3 bundle of the kind trained here.

    Raises:
        TrainingError: what is wrong with the folder.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise TrainingError(f"no diffusers bundle at {path}: model_index.json is missing; set training.base_model")
    parts = json.loads(index.read_text("utf-8"))
    if parts.get("_class_name") != "StableDiffusion3Pipeline":
        raise TrainingError(f"{index} names {parts.get('_class_name')}; only StableDiffusion3Pipeline is trained here")
    if parts.get("text_encoder_3", [None, None])[0] is not None:
        raise TrainingError(f"{path} has a T5 text encoder, which is not supported; save the bundle without it")
    missing = [part for part in (*ENCODERS, "transformer", "scheduler") if not (path / part).is_dir()]
    if missing:
        raise TrainingError(f"{path} lacks {', '.join(missing)}; an SD3 bundle has them all")


def encoders_digest(path: Path) -> str:
    """The digest of the parts that latents and text embeddings depend on."""
    return digest_json({part: digest_path(path / part) for part in ENCODERS})


def resolution(path: Path) -> int:
    """Height and width of the pictures that the bundle draws, in pixels."""
    transformer = json.loads((path / "transformer" / "config.json").read_text("utf-8"))
    vae = json.loads((path / "vae" / "config.json").read_text("utf-8"))
    halvings = len(vae["block_out_channels"]) - 1
    return int(transformer["sample_size"]) << halvings


def schedule_shift(path: Path) -> tuple[float, int]:
    """The scheduler's time shift, and the number of its training timesteps.

    Raises:
        TrainingError: the shift depends on the picture's size, which SD3 bundles do not use.
    """
    config = json.loads((path / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    if config.get("use_dynamic_shifting"):
        raise TrainingError(f"the scheduler of {path} shifts dynamically; only a static shift is supported")
    return float(config.get("shift", 1.0)), int(config.get("num_train_timesteps", 1000))
