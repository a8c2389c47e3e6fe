"""Settings of evaluate: on which prompts and by which scorers models are compared."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lineage.frozen import Frozen


class ScorerSettings(Frozen):
    """One scorer: a name of the entry-point group ``triptych.scorers`` and the weights it loads."""

    scorer: str
    weights: str
    """A file or folder; for ``process``, the folder that the command runs in."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the scorer's class."""


class DrawingSettings(Frozen):
    """How models are loaded for drawing; a large one does not fit in fp32, or not on one GPU."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """The number format of the weights; the version is registered with it, and served in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    offload: bool = False
    """Keep on the GPU only the part of the model that is at work."""


class EvaluationSettings(Frozen):
    """What decides the scores, beside the models."""

    evaluation_set: str
    """Folder of the evaluation set."""
    scorers: tuple[ScorerSettings, ...] = Field(min_length=1)
    batch_size: int = Field(default=50, ge=1)
    """Pictures sampled at once."""
    drawing: DrawingSettings = DrawingSettings()
    limit: int | None = Field(default=None, ge=1)
    """Use only this many prompts, spread evenly over the set; for trying, not for promoting."""
    rotate: int | None = Field(default=None, ge=2)
    """Ask only so many of the prompts, drawn anew for each decision, evenly over their attributes, with seeds of their
    own; for large sets. Sealed prompts are asked always, as they are."""
    grid: int = Field(default=16, ge=1, le=64)
    """Prompts shown side by side in the sample grid."""
    allow_teacher_leakage: bool = False
    """Let a scorer judge that is, or contains, a network the candidate was trained to please. Recorded in the
    verdict."""
