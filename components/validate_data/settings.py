"""Settings of validation: which suite, and how many rows may fail it."""

from __future__ import annotations

from pydantic import Field

from lineage.frozen import Frozen


class ValidationSettings(Frozen):
    """What the data must hold; see `components.validate_data.suite` for how a suite is read."""

    suite: str = Field(min_length=1)
    """Path of a Great Expectations suite as JSON, about the columns of `components.validate_data.facts`."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """The largest share of rows that may be quarantined; with more of them the run fails."""
    max_pixels: int = Field(default=2**26, gt=0)
    """Images of more pixels than this are not decoded: they would fill the memory."""
    faces: bool = True
    """Whether faces are looked for (a presence check, see docs/data.md)."""
    face_threshold: float = Field(default=0.5, gt=0, lt=1)
    """The score from which on the detector's find counts as a face."""
    tokenizer: str | None = None
    """Path of a folder with the base model's ``tokenizer.json``, by which captions' tokens are counted."""
    processes: int = Field(default=0, ge=0)
    """How many batches of images are measured at once; 0: one a core."""
