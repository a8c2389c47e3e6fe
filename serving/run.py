"""Serving the application by uvicorn, and ending well: say so, wait for who is being answered, then go."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from serving.settings import Settings
from serving.telemetry import say, start_log

HEADER_BYTES = 16384
"""Of a request's first line and headers."""


class Server(uvicorn.Server):
    """A server that stops admitting before it stops listening."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service, self._leave = app.state.service, settings.leave
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "ws": "none"}
        bounds: dict[str, Any] = {
            "h11_max_incomplete_event_size": HEADER_BYTES,
            "timeout_graceful_shutdown": round(settings.drain),
        }
        super().__init__(uvicorn.Config(app, settings.host, settings.port, **quiet, **bounds))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT: from now on "not ready"; after `Settings.leave` seconds no more connections."""
        again, self._service.draining = self._service.draining, True
        say("draining", pending=self._service.pending)
        if again or not self._leave:
            super().handle_exit(sig, frame)
        else:
            loop = asyncio.get_event_loop()
            loop.call_soon_threadsafe(loop.call_later, self._leave, super().handle_exit, sig, frame)


def serve(settings: Settings) -> None:
    """Serve until told to end.

    Raises:
        LineageError: it cannot start.
    """
    from serving.api import create_app

    start_log()
    Server(create_app(settings), settings).run()
