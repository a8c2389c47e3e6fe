"""One picture from the moment it is asked for until it is drawn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.backend import BackendError, Drawing, Drawn, LateError, RefusedError
from training.families.drawing import PRECISION, PRECISIONS
from training.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor

    from serving.engine.model import Model

MOST_GUIDANCE = 1000


@dataclass(frozen=True)
class Plan:
    """How a picture is drawn, checked against what its model can draw."""

    steps: int
    guidance: float
    height: int
    width: int
    longest: int
    """Tokens read of the prompt; those of padding, where the family pads with zeros."""
    rows: int
    """Rows of a batch that the picture fills: 2 with classifier-free guidance, else 1."""

    @classmethod
    def of(cls, family: Family, sampling: Mapping[str, Any]) -> Plan:
        """Read ``sampling``.

        Raises:
            RefusedError: a value is missing, or is none that the family draws with.
        """
        if (precision := sampling.get("precision", PRECISION)) not in PRECISIONS:
            raise RefusedError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        guidance = sampling.get("guidance_scale")
        if not isinstance(guidance, int | float) or not 0 <= guidance <= MOST_GUIDANCE:  # NaN is neither
            raise RefusedError(f"guidance_scale is {guidance!r}; it must be a number from 0 to {MOST_GUIDANCE}")
        longest = _whole(sampling, "max_sequence_length", family.longest_text, 0, family.most_text)
        unit, most = family.vae_factor * family.patch, family.largest_side
        height, width = (_whole(sampling, side, family.resolution, unit, most) for side in ("height", "width"))
        if height % unit or width % unit:
            raise RefusedError(f"a picture of {width} x {height} is not drawn; sides are multiples of {unit}")
        guided = family.unconditional is not None and guidance > 1
        steps = _whole(sampling, "num_inference_steps", None, 1, family.timesteps)
        return cls(steps, float(guidance), height, width, longest, 2 if guided else 1)


def _whole(sampling: Mapping[str, Any], name: str, absent: int | None, least: int, most: int) -> int:
    """A whole number of ``sampling`` between ``least`` and ``most``; ``absent`` where it is left out."""
    value = sampling.get(name)
    value = absent if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RefusedError(f"{name} is {value!r}; this model draws with whole numbers from {least} to {most}")
    return int(value)


class Picture:
    """A drawing with its state. The event loop creates and awaits it, the worker moves it on.

    Raises:
        RefusedError: it cannot be drawn with this model.
    """

    def __init__(self, model: Model, drawing: Drawing) -> None:
        self.model, self.drawing = model, drawing
        self.plan = Plan.of(model.family, drawing.sampling)
        if not -(2**63) <= drawing.seed < 2**64:
            raise RefusedError(f"seed is {drawing.seed}; it must fit into 64 bits")
        shape = (self.plan.height, self.plan.width)
        text = None if model.family.mixes_lengths else self.plan.longest
        self.key = (id(model), *shape, text, drawing.id if drawing.deterministic else None)
        """Pictures of one key may share a batch; a deterministic one has its key, and so its forwards, to itself."""
        self.previews = {
            round(self.plan.steps * (n + 1) / (drawing.partial_images + 1)) for n in range(drawing.partial_images)
        } - {0, self.plan.steps}
        self.step = 0
        self.rows = self.plan.rows
        self.latents: Any = None
        """(1, C, h, w)."""
        self.clean: Any = None
        """Latents of the next preview: where the last step's velocity leads to."""
        self.text: list[dict[str, Tensor]] = []
        """Conditioning of the prompt and, where guidance needs it, of the unconditional one."""
        self.timesteps: list[float] = []
        self.levels: list[float] = []
        """σ before each step, and after the last."""
        self.overtaken = 0
        """How many later ones were admitted before it."""
        self.passed = 0
        """Batches of its group, in a row, that it had no part in."""
        self.ended: BackendError | None = None
        """Why the worker must not go on with it."""
        self.asked = self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[Drawn | BackendError] = asyncio.Queue()

    @property
    def left(self) -> int:
        """Steps that it still needs."""
        return self.plan.steps - self.step

    def lap(self, stage: str) -> None:
        """Note the seconds since the last lap as those of ``stage``."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.began
        self.began = now

    def tell(self, news: Drawn | BackendError) -> None:
        """Hand something to whoever waits for the picture; from any thread."""
        if isinstance(news, BackendError):
            self.ended = self.ended or news
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._out.put_nowait, news)

    def too_late(self) -> LateError | None:
        """The error to end with, once the deadline has passed."""
        if self.drawing.deadline is None or time.monotonic() < self.drawing.deadline:
            return None
        return LateError(f"the deadline passed after {self.step} of {self.plan.steps} steps")

    async def news(self) -> Drawn:
        """The next preview, or the picture itself.

        Raises:
            BackendError: it will not be drawn; a `LateError` comes even where the worker hangs.
        """
        deadline = self.drawing.deadline
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                told = await self._out.get()
        except TimeoutError:
            raise self.too_late() or LateError("the deadline passed") from None
        if isinstance(told, BackendError):
            raise told
        return told
