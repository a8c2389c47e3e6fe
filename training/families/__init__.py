"""Families of MM-DiT models, each behind one adapter: `family_of` finds a bundle's own. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from training.errors import TrainingError
from training.families.family import INDEX, Family
from training.families.flux import Flux
from training.families.qwen_image import QwenImage
from training.families.sd3 import StableDiffusion3

FAMILIES: dict[str, type[Family]] = {kind.pipeline_class: kind for kind in (StableDiffusion3, Flux, QwenImage)}
"""By the pipeline class that a bundle's ``model_index.json`` names."""


def family_of(bundle: Path) -> Family:
    """The adapter of the diffusers bundle at ``bundle``.

    Raises:
        TrainingError: there is no bundle, it is of a family not known here, or parts of it are missing.
    """
    index = bundle / INDEX
    if not index.is_file():
        raise TrainingError(f"no diffusers bundle at {bundle}: {INDEX} is missing; set training.base_model")
    named = json.loads(index.read_text("utf-8")).get("_class_name")
    if named not in FAMILIES:
        raise TrainingError(f"{index} names {named}; the families trained here are {', '.join(FAMILIES)}")
    return FAMILIES[named](bundle)
