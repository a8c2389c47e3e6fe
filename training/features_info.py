"""``features.json``: what a features folder was made from. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import TrainingError

INFO = "features.json"


class FeaturesInfo(BaseModel):
    """``features.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    manifest: str
    """Digest of the manifest whose pictures and captions these are."""
    base_model: str
    """Digest of the base model's folder."""
    encoders: str
    """Digest of the parts of the base model that were used: VAE, CLIPs, tokenizers."""
    teacher: str | None
    """Digest of the teacher's folder; None: no teacher was used."""
    images: int
    captions: int
    """Distinct captions, the empty one included."""
    phrases: int
    truncated_captions: int
    """Captions longer than the CLIPs read."""
    resolution: int
    """Height and width of the pictures, in pixels."""
    shard_rows: int
    teacher_grid: tuple[int, int] | None
    """Rows and columns of the teacher's patches."""
    alignment: dict[str, float]
    """How decided the vision-aligned target is (`training.targets.AlignmentReport`)."""


def read_info(folder: Path) -> FeaturesInfo:
    """Read ``features.json``.

    Raises:
        TrainingError: it is missing or not of this format.
    """
    try:
        return FeaturesInfo.model_validate_json((folder / INFO).read_text("utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"no features at {folder}: {INFO} is missing; run the encode-features step") from None
    except ValidationError as error:
        raise TrainingError(f"{folder / INFO} is not of the format read here: {error}; encode again") from error


def write_info(folder: Path, info: FeaturesInfo) -> None:
    """Write ``features.json``: last, so that a folder without it is known to be unfinished."""
    text = json.dumps(info.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / INFO).write_text(text + "\n", "utf-8")
