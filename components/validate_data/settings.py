"""Settings of validation: which suite, and how many rows may fail it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ValidationSettings(BaseModel):
    """What the data must hold; see `components.validate_data.suite` for how a suite is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str = Field(min_length=1)
    """Path of a Great Expectations suite as JSON, about the columns of `components.validate_data.facts`."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """The largest share of rows that may be quarantined; with more of them the run fails."""
    max_pixels: int = Field(default=2**26, gt=0)
    """Images of more pixels than this are not decoded: they would fill the memory."""
