"""Settings of the data: where the images lie."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DataSettings(BaseModel):
    """What to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    """URI or absolute path of a Hugging Face imagefolder: images and ``metadata.jsonl`` or ``.parquet``."""
