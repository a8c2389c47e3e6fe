"""Settings of the gate: what a candidate must hold, in score units."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

AXES = ("alignment", "realism", "aesthetics")


class Slice(BaseModel):
    """A group of prompts whose figure may not get worse, so that an average cannot hide harm to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str
    """An axis, or a part of one such as ``alignment/glasses``."""
    where: dict[str, str | bool] = Field(min_length=1)
    """Attributes (as in the evaluation set) that a prompt must have to belong to the slice."""
    margin: float = Field(gt=0)
    """The largest loss, in score units, that still counts as holding."""


class GateSettings(BaseModel):
    """The rules of the verdict; see `components.gate.verdict`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    margins: dict[str, float]
    """Axis -> the largest loss, in score units, that still counts as holding. Every axis must have one."""
    slices: dict[str, Slice] = Field(default_factory=dict)
    alpha: float = Field(default=0.025, gt=0, lt=0.5)
    """One-sided error of each bound."""
    resamples: int = Field(default=10_000, ge=1000)
    seed: int = 0
    minimum_prompts: int = Field(default=30, ge=2)
    """Fewest prompts that an axis or a slice may be judged on."""
