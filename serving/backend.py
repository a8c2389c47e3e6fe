"""The seam between whoever answers requests and whatever draws: verification, credentials and limits stay in front.

A backend is a class found by name in the entry-point group ``triptych.backends`` and called without arguments but the
settings. It may hold several models at once; a request names the one that it draws with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class BackendError(Exception):
    """The backend cannot do what it was asked; the message says what, and what to do."""


class UnusableError(BackendError):
    """A model does not load, or draws NaN while it is warmed up."""


class RefusedError(BackendError):
    """A request asks for what this model cannot draw, such as a size that is no multiple of its patches."""


class GoneError(BackendError):
    """The model that the request names is closed."""


class LateError(BackendError):
    """The request's deadline passed before its picture was ready."""


@dataclass(frozen=True)
class Drawing:
    """One picture, asked for.

    Attributes:
        id: of this picture; `Backend.cancel` takes it.
        sampling: ``num_inference_steps``, ``guidance_scale``, ``max_sequence_length``, ``height``, ``width``: what the
            model was judged with, and what the caller asks otherwise; and the ``precision`` that it was loaded in.
        partial_images: how many previews are wanted on the way, 0 to 3.
        deterministic: other requests of the same moment cannot change a bit of the picture.
        deadline: `time.monotonic` seconds after which nobody wants it any more; None: none.
    """

    id: str
    prompt: str
    seed: int
    sampling: Mapping[str, Any]
    partial_images: int = 0
    deterministic: bool = False
    deadline: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture: the last of a drawing, or a preview on the way."""

    image: Image.Image
    step: int
    """Steps done."""
    steps: int
    """Steps in all; equal to ``step`` for the finished picture."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage: ``queue``, ``text``, ``steps``, ``decode``."""


@dataclass(frozen=True)
class Load:
    """What a backend does at this moment."""

    active: int
    """Pictures in work."""
    waiting: int
    """Pictures that wait for a place."""
    capacity: int
    """Pictures that may be in work at once."""
    pictures_per_second: float
    """Measured, at a full batch and the sampling that the model was judged with; 0 before a warm-up."""
    occupancy: float
    """Pictures in the last step's batch, divided by the largest useful batch."""


class Backend(Protocol):
    """Draws with one or more loaded models. All methods run on one event loop; none blocks it."""

    async def load(self, model: str, folder: Path, sampling: Mapping[str, Any]) -> None:
        """Load a bundle whose digest was checked. ``model`` names it from now on.

        Args:
            sampling: what the model was judged with; ``precision`` is the number format of its weights, PyTorch's name.

        Raises:
            UnusableError: it does not load.
        """

    async def warm(self, model: str) -> None:
        """Draw with it until it is as fast as it gets, and measure the largest useful batch.

        Raises:
            UnusableError: it draws NaN, or fails.
        """

    def generate(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        """Draw: previews first, the finished picture last. Closing the iterator frees the place at the next step.

        Raises:
            RefusedError, GoneError, LateError, BackendError: see there.
        """

    def cancel(self, drawing: str) -> None:
        """Free the place of a drawing at the next step; nothing happens where there is none of this id."""

    async def digest(self, model: str) -> str:
        """The digest of the weights that really draw, or "" where the backend cannot tell."""

    def load_now(self) -> Load:
        """What the backend does at this moment."""

    async def unload(self, model: str) -> None:
        """Free what a model holds, once its drawings are done. Nothing happens where there is no such model."""

    async def close(self) -> None:
        """Stop: nothing is drawn any more; what waits ends with `GoneError`."""
