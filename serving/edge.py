"""The server's outer edge: what every request goes through, whatever it asks for.

An id of its own, the API key, a bound on its body, one line in the log, and no traceback, ever.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lineage.digests import LineageError
from serving.errors import KeyRequiredError, ServingError, TooLargeError
from serving.settings import Settings
from serving.telemetry import REQUEST, Metrics, say

GUARDED = ("/v1/", "/wake")
"""Paths that need the key, where there is one."""
BODY_PATIENCE = 30.0
"""Seconds in which a body must be here."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class Edge:
    """Middleware around the application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, key: bytes) -> None:
        self.app, self.settings, self.metrics, self._key = app, settings, metrics, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        asked = given.get("x-request-id", "")
        scope["state"] = scope.get("state", {}) | {"facts": {}}
        id = asked if re.fullmatch(r"[\w.-]{1,64}", asked, re.ASCII) else f"req_{secrets.token_hex(12)}"
        token, began, status = REQUEST.set(id), time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS | {"x-request-id": id})
            await send(message)

        try:
            self._check_key(scope["path"], given.get("authorization", ""))
            await self.app(scope, await self._bounded(scope, receive), answer)
        except Exception as error:
            if not isinstance(error, ServingError):
                say("a request failed", logging.ERROR, broken=True)
            if not status:  # else the connection is cut: half an answer must not look like a whole one
                known = error if isinstance(error, ServingError) else ServingError("something is wrong with the server")
                await known.answer()(scope, receive, answer)
            else:
                raise ConnectionAbortedError(f"request {id} ended in the middle of its answer") from None
        finally:
            took = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.answers.labels(route, str(status or 499)).observe(took)
            if route not in ("/health/live", "/health/ready", "/metrics"):
                facts: dict[str, Any] = scope["state"]["facts"]
                say("request", method=scope["method"], path=scope["path"], status=status or 499, seconds=took, **facts)
            REQUEST.reset(token)

    def _check_key(self, path: str, given: str) -> None:
        scheme, _, key = given.partition(" ")
        if not self._key or not path.startswith(GUARDED):
            return
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise KeyRequiredError("give this server's API key as: Authorization: Bearer KEY")

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, read within its bounds; then what comes after it, such as that the caller is gone."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(BODY_PATIENCE):
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.settings.most_body:
                        raise TooLargeError(f"the body has more than {self.settings.most_body} bytes")
        except TimeoutError as error:
            raise TooLargeError("the body did not arrive in time") from error
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


def read_key(path: Path | None) -> bytes:
    """The API key in a file; empty: none is configured.

    Raises:
        LineageError: the file cannot be read, or the key is short.
    """
    if path is None:
        return b""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise LineageError(f"the API key's file {path} cannot be read: {error.strerror}") from error
    if len(key) < 16:
        raise LineageError(f"the API key in {path} is shorter than 16 characters; make one: openssl rand -hex 32")
    return key
