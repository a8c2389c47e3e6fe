"""Settings of the gate: what a candidate must hold, in score units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

AXES = ("alignment", "realism", "aesthetics")
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""The largest loss, in score units, that still counts as holding."""


def missing_axes(margins: Iterable[str]) -> list[str]:
    """The axes that no measure with a margin decides."""
    decided = {axis_of(measure) for measure in margins}
    return [axis for axis in AXES if axis not in decided]


def axis_of(measure: str) -> str:
    """The axis that a measure belongs to: ``realism`` for ``realism`` and for ``realism/kid``."""
    return measure.split("/", 1)[0]


class Slice(BaseModel):
    """A group of prompts whose figure may not get worse, so that an average cannot hide harm to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str
    """An axis, or a part of one such as ``alignment/glasses``; not a set-level measure."""
    where: dict[str, str | bool] = Field(min_length=1)
    """Attributes (as in the evaluation set) that a prompt must have to belong to the slice."""
    margin: Margin


class Constraint(BaseModel):
    """A share of pictures that may not grow, whatever the axes gain: a measure of −1 a picture that has the fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str = "memorisation"
    margin: Margin
    """By how much the candidate's share may lie above the incumbent's."""
    limit: float = Field(default=1.0, gt=0, le=1)
    """The largest share at all, whatever the incumbent's."""


class GateSettings(BaseModel):
    """The rules of the verdict; see `components.gate.verdict`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    margins: dict[str, Margin]
    """Measure -> the largest loss that still counts as holding. A measure with a margin decides: an axis, or a part of
    one (``realism/kid``). Every axis needs at least one."""
    slices: dict[str, Slice] = Field(default_factory=dict)
    constraints: dict[str, Constraint] = Field(default_factory=dict)
    alpha: float = Field(default=0.025, gt=0, lt=0.5)
    """One-sided error of each bound."""
    resamples: int = Field(default=10_000, ge=1000)
    seed: int = 0
    minimum_prompts: int = Field(default=30, ge=2)
    """Fewest prompts that an axis or a slice may be judged on."""
    decisions_warning: int = Field(default=20, ge=1)
    """From this many decisions on one evaluation set on, the verdict says that the set wears out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = sorted(measure for measure in self.margins if axis_of(measure) not in AXES)
        if unknown:
            raise ValueError(f"margins: {unknown[0]!r} is no measure of {', '.join(AXES)}")
        if self.alpha / max(3, len(self.margins)) * (self.resamples + 1) < 1:
            raise ValueError(f"resamples: {self.resamples} are too few for bounds at alpha = {self.alpha:g}")
        return self
