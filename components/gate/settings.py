"""Settings of the gate: what a candidate must hold, in score units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, model_validator

from lineage.frozen import Frozen

AXES = ("alignment", "realism", "aesthetics")
RANGES = {"alignment": (0.0, 1.0), "memorisation": (-1.0, 0.0), "diversity": (0.0, 1.0)}
"""Between what a measure's scores lie where the settings say nothing of it; any other's: −1 to 1."""
FEWEST = 4
"""Resamples beyond a bound; fewer, and chance moves it."""
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""The largest loss, in score units, that still counts as holding."""


def missing_axes(margins: Iterable[str]) -> list[str]:
    """The axes that no measure with a margin decides."""
    decided = {axis_of(measure) for measure in margins}
    return [axis for axis in AXES if axis not in decided]


def axis_of(measure: str) -> str:
    """The axis that a measure belongs to: ``realism`` for ``realism`` and for ``realism/kid``."""
    return measure.split("/", 1)[0]


class Slice(Frozen):
    """A group of prompts whose figure may not get worse, so that an average cannot hide harm to it."""

    measure: str
    """An axis, or a part of one such as ``alignment/glasses``; not a set-level measure."""
    where: dict[str, str | bool] = Field(min_length=1)
    """Attributes (as in the evaluation set) that a prompt must have to belong to the slice."""
    margin: Margin


class Constraint(Frozen):
    """A fault that no gain makes good: a share of pictures (−1 a picture that has it), or too little diversity."""

    measure: str = "memorisation"
    margin: Margin
    """By how much the candidate may be worse than the incumbent."""
    limit: float = Field(default=1.0, gt=0, le=1)
    """The largest share at all, whatever the incumbent's."""


class GateSettings(Frozen):
    """The rules of the verdict; see `components.gate.verdict`."""

    margins: dict[str, Margin]
    """Measure -> the largest loss that still counts as holding. A measure with a margin decides: an axis, or a part of
    one (``realism/kid``). Every axis needs at least one."""
    slices: dict[str, Slice] = Field(default_factory=dict)
    constraints: dict[str, Constraint] = Field(default_factory=dict)
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
    """Measure, or the axis that it is a part of -> its lowest and highest score; what lies outside counts as the end
    it lies beyond. The bounds hold for scores of this range, and the wider it is, the more prompts a margin needs."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability of any false promotion in all decisions on one evaluation set together."""
    life: int = Field(default=20, ge=1)
    """How many decisions one evaluation set is meant for: each spends alpha / life, and none promotes after them."""
    loss_alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability that a decision finds a loss anywhere where there is none."""
    resamples: int = Field(default=10_000, ge=1000)
    seed: int = 0
    minimum_prompts: int = Field(default=30, ge=2)
    """Fewest prompts that an axis or a slice may be judged on, beside those that its margin needs."""

    @property
    def level(self) -> float:
        """One-sided error of the bounds of one decision."""
        return self.alpha / self.life

    @property
    def gain_level(self) -> float:
        """Of a gain on one of the measures that decide."""
        return self.level / max(1, len(self.margins))

    @property
    def loss_level(self) -> float:
        """Of a loss in one figure; never below `gain_level`, so that a gain seen from the other side is a loss."""
        figures = len(self.margins) + len(self.slices) + len(self.constraints)
        return max(self.gain_level, self.loss_alpha / max(1, figures))

    def range_of(self, measure: str) -> tuple[float, float]:
        """The lowest and the highest score of a measure."""
        names = (measure, axis_of(measure))
        return next((known[n] for known in (self.ranges, RANGES) for n in names if n in known), (-1.0, 1.0))

    def prompts_for(self, margin: float, measure: str) -> int:
        """The fewest prompts that can show that a measure holds: without one failure among them, the bound is −margin.

        (1 − margin / width)ⁿ ≤ level, as in the exact interval of C. Clopper and E. Pearson (1934).
        """
        low, high = self.range_of(measure)
        if margin >= high - low:
            return self.minimum_prompts
        return max(self.minimum_prompts, math.ceil(math.log(self.level) / math.log1p(-margin / (high - low))))

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = sorted(measure for measure in self.margins if axis_of(measure) not in AXES)
        if unknown:
            raise ValueError(f"margins: {unknown[0]!r} is no measure of {', '.join(AXES)}")
        for measure, (low, high) in self.ranges.items():
            if low >= high:
                raise ValueError(f"ranges: {measure} goes from {low:g} to {high:g}; say the lowest score first")
        rarest = self.gain_level * (self.resamples + 1)
        if rarest - math.sqrt(rarest) < FEWEST:
            raise ValueError(f"resamples: {self.resamples} are too few for bounds at {self.gain_level:.2g}")
        return self
