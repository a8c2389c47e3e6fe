"""Settings of the data: where the images lie, and what is held out."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from lineage.frozen import Frozen


class DataSettings(Frozen):
    """What to train on."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    source: str = Field(min_length=1)
    """URI (``file://``, ``s3://``, ``gs://``, ``hf://``) or absolute path: see `components.snapshot_data.source`."""
    rights: dict[Literal["license", "consent", "source"], str] = Field(default_factory=dict)
    """What holds for rows that do not say: a folder with caption files cannot."""
    copying: bool = Field(default=False, alias="copy")
    """Copy the images into ``store``, by content, instead of naming the places where they lie."""
    store: str = Field(default="", pattern=r"^$|^/|://")
    """URI or absolute path of the folder for copies. Empty: beside the run's unfinished work."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """The share of images to hold out, of those whose row names no ``split``."""
    near_duplicate_bits: int = Field(default=3, ge=0, le=8)
    """Images whose perceptual hashes differ in at most so many of 64 bits stay on one side of the split."""
    snapshot: str = Field(default="", pattern=r"^$|^sha256:[0-9a-f]{64}$")
    """Digest of the one snapshot that is meant, where the source was looked at before; empty: whatever is there now."""
