"""The HTTP API: OpenAI's images, KServe's and OpenAI's models, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from http import HTTPStatus
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lineage.digests import LineageError
from serving.backend import Backend, BackendError
from serving.credentials import ContentSigner, make_content_key
from serving.edge import Edge, read_key
from serving.errors import BadRequestError, HungUpError, ServingError, UnknownError
from serving.images import USAGE, ImageRequest, Job, plan
from serving.service import Service
from serving.settings import Settings
from serving.slot import Loaded, Slot
from serving.telemetry import REQUEST, Metrics, say

PAGE = Path(__file__).parent / "page"
PAGES = {"": "index.html", "page.js": "page.js", "page.css": "page.css"}
BACKENDS = "triptych.backends"


class Fault(BaseModel):
    """What is wrong, as OpenAI writes it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """An answer that is none."""

    error: Fault


FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed} for status in (400, 401, 404, 405, 410, 413, 429, 500, 503, 504)
}


class Events(StreamingResponse):
    """Server-sent events that hold what they draw with until they end, however they end."""

    def __init__(self, events: AsyncGenerator[str], held: ExitStack, headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers | {"cache-control": "no-store"}, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See `StreamingResponse`."""
        with self._held:
            await super().__call__(scope, receive, send)


def open_backend(settings: Settings) -> Backend:
    """The backend that the settings name.

    Raises:
        LineageError: there is none of this name.
    """
    name = settings.backend
    found = entry_points(group=BACKENDS, name=name)
    try:
        if not found and ":" not in name:
            known = ", ".join(sorted(one.name for one in entry_points(group=BACKENDS)))
            raise LineageError(f"there is no backend {name!r}; there are {known or 'none: install triptych'}")
        kind = next(iter(found), EntryPoint(name, name, BACKENDS)).load()
        made: Backend = kind(**settings.backend_options)
    except (ImportError, AttributeError, TypeError, BackendError) as error:
        raise LineageError(f"the backend {name!r} cannot be loaded: {error}") from error
    return made


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """The application; `serving.run` serves it.

    Raises:
        LineageError: the content key, the API key or the backend cannot be used.
    """
    key, backend, metrics = read_key(settings.api_key), backend or open_backend(settings), Metrics()
    slot = Slot(settings, backend, metrics)
    if settings.content_key and settings.content_chain:
        signer = ContentSigner(settings.content_key, settings.content_chain, settings.content_timestamps)
    else:
        signer = ContentSigner(*make_content_key(settings.state / "content"), settings.content_timestamps)
    service = Service(settings, slot, backend, signer, metrics)
    metrics.watch("queue_pictures", "Admitted and not done", lambda: service.pending)
    metrics.watch("batch_occupancy", "Of the last step, of the largest batch", lambda: backend.load_now().occupancy)
    metrics.watch("staleness_seconds", "Since the channel expired", lambda: slot.overdue)
    metrics.watch("ready", "Whether it draws", lambda: slot.status()["ready"])
    metrics.watch("content_certificate_expires", "Seconds since 1970", lambda: signer.expires.timestamp())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(slot.follow())
        renewing = asyncio.create_task(_renew(settings, signer))
        yield
        for task in (following, renewing):
            task.cancel()
        await asyncio.gather(following, renewing, return_exceptions=True)
        await backend.close()

    app = FastAPI(title="Triptych", version=version("triptych"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.slot = service, slot
    app.add_exception_handler(ServingError, _failed)
    app.add_exception_handler(RequestValidationError, _failed)
    app.add_exception_handler(HTTPException, _failed)
    _add_images(app, service)
    _add_models(app, slot)
    _add_operations(app, service, metrics)
    made = app.openapi()  # from now on it is this one
    for operation in (one for path in made["paths"].values() for one in path.values()):
        operation["responses"].pop("422", None)  # a malformed request is 400 here
    for name in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(name, None)
    app.add_middleware(Edge, settings=settings, metrics=metrics, key=key)
    return app


async def _renew(settings: Settings, signer: ContentSigner) -> None:
    """Take up exchanged content keys, and renew one that was made here."""
    while True:
        await asyncio.sleep(60)
        try:
            if not settings.content_key:
                await asyncio.to_thread(make_content_key, settings.state / "content")
            await asyncio.to_thread(signer.refresh)
        except (LineageError, OSError) as error:
            say("the content key was not renewed", reason=str(error))


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """Any refusal in OpenAI's shape."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"] if part != "body")
        error = BadRequestError(f"{at}: {first['msg']}" if at else str(first["msg"]), at or None)
    if isinstance(error, HTTPException):
        status, error = HTTPStatus(error.status_code), ServingError(str(error.detail))
        error.status, error.kind, error.code = status, "invalid_request_error", status.name.lower()
    assert isinstance(error, ServingError)
    return error.answer()


def _add_images(app: FastAPI, service: Service) -> None:
    kinds: dict[str, Any] = {"application/json": {}, "text/event-stream": {}}

    @app.post("/v1/images/generations", responses=FAULTS | {200: {"content": kinds}})
    async def generate(asked: ImageRequest, request: Request) -> Response:
        """Draw pictures; with ``stream`` as server-sent events."""
        with ExitStack() as held:
            loaded = service.slot.resolve(asked.model)
            held.enter_context(loaded.users)
            job = plan(asked, loaded, service.settings, REQUEST.get())
            request.state.facts |= loaded.named | {"pictures": len(job.seeds), "seed": job.seeds[0]}
            if service.settings.log_prompts:
                request.state.facts["prompt"] = job.prompt
            held.enter_context(service.admitted(len(job.seeds)))
            headers = {f"x-triptych-{name}": value for name, value in loaded.named.items()}
            headers["x-triptych-state"] = str(service.slot.status()["state"])
            if asked.stream:
                return Events(_events(service, job), held.pop_all(), headers)
            pictures = await _all(service, job, request)
        return JSONResponse(job.answer(pictures), headers=headers)


async def _all(service: Service, job: Job, request: Request) -> list[str]:
    """The pictures of a job; where one fails, or the caller is gone, the others end."""

    async def one(number: int) -> str:
        async with aclosing(service.draw(job, number)) as drawn:
            return [content async for content, _ in drawn][-1]

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise HungUpError("the caller hung up")

    try:
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(hung_up())
            pictures = await asyncio.gather(*(group.create_task(one(number)) for number in range(len(job.seeds))))
            gone.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return pictures


async def _events(service: Service, job: Job) -> AsyncGenerator[str]:
    number = 0
    try:
        async with aclosing(service.draw(job)) as pictures:
            async for content, drawn in pictures:
                if drawn.step < drawn.steps:
                    event = job.event("partial_image", content, job.seeds[0], partial_image_index=number)
                    number += 1
                else:
                    event = job.event("completed", content, job.seeds[0], usage=USAGE)
                yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
    except ServingError as error:
        yield f"event: error\ndata: {json.dumps(error.body())}\n\n"


def _add_models(app: FastAPI, slot: Slot) -> None:
    def shown(loaded: Loaded, name: str) -> dict[str, Any]:
        champion = loaded.champion
        told = {"id": name, "object": "model", "created": 0, "owned_by": "triptych", "name": name, "ready": True}
        told |= loaded.named | {"folder": champion.folder, "decision": champion.decision, "moved": champion.time}
        told |= {"figures": list(champion.figures), "sampling": loaded.sampling}
        return told | {"role": "champion" if loaded is slot.current else "previous"}

    @app.get("/v1/models", responses=FAULTS)
    async def models() -> dict[str, Any]:
        """What may be asked for: for OpenAI's client ``data``, for KServe's V1 ``models``."""
        found = [shown(slot.current, slot.model)] if slot.current else []
        found += [shown(one, f"{slot.model}@{one.champion.version}") for one in slot.loaded()]
        return {"object": "list", "data": found, "models": [one["id"] for one in found]}

    @app.get("/v1/models/{name}", responses=FAULTS)
    async def model(name: str) -> dict[str, Any]:
        """One model, for either client."""
        return shown(slot.resolve(name), name)


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    slot = service.slot

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"description": "It draws for nobody now."}})
    async def ready() -> JSONResponse:
        """Whether it draws, with what, and what is wrong."""
        status = slot.status() | ({"ready": False, "state": "draining"} if service.draining else {})
        return JSONResponse(status, 200 if status["ready"] else 503)

    @app.get("/version")
    async def named() -> dict[str, Any]:
        """What runs here and what it draws with."""
        status, settings = slot.status(), service.settings
        told = {name: status[name] for name in ("model", "version", "digest", "mode", "signature")}
        return {"triptych": app.version, "backend": settings.backend, **told}

    @app.post("/wake", status_code=202, responses=FAULTS)
    async def wake() -> dict[str, str]:
        """Look at the channel now; it is believed as far as it can prove what it says."""
        slot.wake()
        return {"status": "looking"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def shown() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    @app.get("/{name}", include_in_schema=False)
    async def page(name: str = "") -> Response:
        """The page and what belongs to it."""
        if name not in PAGES:
            raise UnknownError("there is no such page")
        return FileResponse(PAGE / PAGES[name], headers={"cache-control": "no-cache"})
