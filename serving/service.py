"""Drawing for requests: admission, the backend, and the signature on every picture that leaves."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from anyio import CapacityLimiter, to_thread

from serving import backend as drawing
from serving.credentials import ContentSigner, encode
from serving.errors import BadRequestError, BusyError, LateError, NotReadyError, ServingError
from serving.images import Job
from serving.likeness import note
from serving.settings import Settings
from serving.slot import Slot
from serving.telemetry import Metrics, say

SIGNERS = 2
"""Threads that encode and sign."""
GRACE = 5.0
"""Seconds past a deadline after which a backend that says nothing is given up."""


class Service:
    """Draws, for as many as may wait."""

    def __init__(
        self, settings: Settings, slot: Slot, backend: drawing.Backend, signer: ContentSigner, metrics: Metrics
    ) -> None:
        self.settings, self.slot, self.backend, self.signer, self.metrics = settings, slot, backend, signer, metrics
        self.pending = 0
        """Pictures that were admitted and are not done."""
        self.draining = False
        self._signers = CapacityLimiter(SIGNERS)

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """A place in the queue for ``count`` pictures.

        Raises:
            BusyError: it is full; says when to come back.
            NotReadyError: the server is ending.
        """
        if self.draining:
            raise NotReadyError("this server is ending; ask another one")
        load = self.backend.load_now()
        if self.pending + count > load.capacity + self.settings.most_waiting:
            wait = (self.pending + count - load.capacity) / load.pictures_per_second if load.pictures_per_second else 1
            raise BusyError(f"{self.pending} pictures are waiting or in work; come back later", after=wait)
        self.pending += count
        try:
            yield
        finally:
            self.pending -= count

    async def draw(self, job: Job, number: int = 0) -> AsyncGenerator[tuple[str, drawing.Drawn]]:
        """Draw one picture of a job: signed previews, then the signed picture, base64, with what was drawn.

        Raises:
            ServingError: why there is no picture, for the caller.
        """
        until = time.monotonic() + self.settings.deadline
        id = f"{job.id}-{number}-{secrets.token_hex(4)}"  # callers may name two requests alike
        how: dict[str, Any] = {"partial_images": job.partial_images, "deterministic": job.deterministic}
        asked = drawing.Drawing(id, job.prompt, job.seeds[number], job.sampling, deadline=until, **how)
        made = cast("AsyncGenerator[drawing.Drawn]", self.backend.generate(job.loaded.name, asked))
        try:
            async with aclosing(made):
                while True:
                    drawn = await asyncio.wait_for(anext(made), max(0.0, until - time.monotonic()) + GRACE)
                    yield await self._signed(job, drawn, asked.seed), drawn
        except StopAsyncIteration:
            return
        except ServingError:
            raise
        except drawing.RefusedError as error:
            raise BadRequestError(str(error)) from error
        except (drawing.LateError, TimeoutError) as error:
            self.backend.cancel(asked.id)
            raise LateError(f"the picture was not ready within {self.settings.deadline:g} s") from error
        except drawing.BackendError as error:
            if isinstance(error, drawing.GoneError):
                self.slot.lost(job.loaded)
            say("the backend failed", logging.ERROR, broken=True, **job.loaded.named)
            raise NotReadyError("the model cannot draw now; try again") from error
        except Exception as error:
            say("a picture failed", logging.ERROR, broken=True, **job.loaded.named)
            raise ServingError("something is wrong with the server") from error

    async def _signed(self, job: Job, drawn: drawing.Drawn, seed: int) -> str:
        content, seconds = await to_thread.run_sync(self._sign, job, drawn, seed, limiter=self._signers)
        final = drawn.step >= drawn.steps
        self.metrics.pictures.labels(job.loaded.champion.version, "picture" if final else "preview").inc()
        for stage, took in ({**drawn.seconds, "credentials": seconds} if final else {}).items():
            self.metrics.stages.labels(stage).observe(took)
        return content

    def _sign(self, job: Job, drawn: drawing.Drawn, seed: int) -> tuple[str, float]:
        """Runs in a thread of its own."""
        began, steps = time.monotonic(), job.sampling["num_inference_steps"]
        origin = job.origin(seed, steps if drawn.step >= drawn.steps else min(drawn.step, steps - 1))
        content = self.signer.sign(encode(drawn.image, job.format, job.quality), origin)
        try:
            if self.settings.picture_log and origin.step == steps:
                note(self.settings.picture_log, drawn.image, job.id, origin)
        except OSError as error:
            say("the picture was not noted", logging.ERROR, reason=str(error))
        return base64.b64encode(content).decode(), time.monotonic() - began
