"""What a request can be refused with, as callers see it: OpenAI's shape, and nothing of the inside."""

from __future__ import annotations

import random
from typing import Any

from fastapi.responses import JSONResponse

LONGEST = 60.0
"""Seconds; the official client does not wait longer than this for another try."""


class ServingError(Exception):
    """A request is not answered with a picture; the message is for the caller."""

    status, kind, code = 500, "server_error", "internal_error"
    after: float | None = None
    """Seconds until another try is worth it; None: nobody knows."""

    def __init__(self, message: str, param: str | None = None, after: float | None = None) -> None:
        super().__init__(message)
        self.param, self.after = param, self.after if after is None else after

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def answer(self) -> JSONResponse:
        """The whole answer; those told when to come back are told slightly different times."""
        headers = {}
        if self.after is not None:
            seconds = min(LONGEST, max(0.1, self.after)) * random.uniform(1.0, 1.25)
            headers = {"Retry-After": str(max(1, round(seconds))), "Retry-After-Ms": str(round(seconds * 1000))}
        return JSONResponse(self.body(), self.status, headers)


class BadRequestError(ServingError):
    """The request says what cannot be done."""

    status, kind, code = 400, "invalid_request_error", "invalid_value"


class KeyRequiredError(ServingError):
    """No API key, or a wrong one."""

    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class UnknownError(ServingError):
    """There is no such model or page."""

    status, kind, code = 404, "invalid_request_error", "model_not_found"


class GoneError(ServingError):
    """The version was withdrawn."""

    status, kind, code = 410, "invalid_request_error", "model_withdrawn"


class TooLargeError(ServingError):
    """The body is larger than any request's."""

    status, kind, code = 413, "invalid_request_error", "request_too_large"


class HungUpError(ServingError):
    """The caller is gone; nobody reads this."""

    status, kind, code = 499, "invalid_request_error", "client_closed_request"


class BusyError(ServingError):
    """Too many wait already."""

    status, kind, code = 429, "rate_limit_error", "queue_full"


class NotReadyError(ServingError):
    """Nothing draws now; another try may find it well."""

    status, kind, code, after = 503, "server_error", "not_ready", 1.0


class LateError(ServingError):
    """The picture was not ready in time."""

    status, kind, code = 504, "server_error", "deadline_exceeded"
