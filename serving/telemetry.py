"""What operators see: metrics for Prometheus, and a log of JSON lines that names request and model."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""Id of the request that is answered."""
LOG = logging.getLogger("triptych.serving")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry, "namespace": "triptych_serving"}
        self.stages = Histogram("stage_seconds", "Of a picture, by stage", ["stage"], buckets=SECONDS, **more)
        self.answers = Histogram("request_seconds", "Of a request", ["route", "status"], buckets=SECONDS, **more)
        self.pictures = Counter("pictures", "Handed out", ["version", "kind"], **more)
        self.swaps = Counter("swaps", "Champions taken up or refused", ["result"], **more)
        self.model = Gauge("model", "1 for the champion that draws", ["model", "version", "digest"], **more)
        self._more = more

    def watch(self, name: str, told: str, value: Callable[[], float]) -> None:
        """Show what ``value`` says whenever somebody looks."""
        Gauge(name, told, **self._more).set_function(value)


class JsonLines(logging.Formatter):
    """One JSON object a line; of an exception kind and place, but not its text, which may hold a prompt."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
        }
        line |= {"event": record.getMessage(), "request": REQUEST.get()} | getattr(record, "facts", {})
        if record.exc_info and record.exc_info[0]:
            where = traceback.extract_tb(record.exc_info[2])
            line |= {"exception": record.exc_info[0].__name__, "raised": [f"{f.filename}:{f.lineno}" for f in where]}
        return json.dumps(line, ensure_ascii=True, default=str)


def say(event: str, level: int = logging.INFO, broken: bool = False, **facts: object) -> None:
    """Write one line to the log; ``broken``: with the exception that is being handled."""
    LOG.log(level, event, extra={"facts": facts}, exc_info=broken)


def start_log() -> None:
    """Have all that is logged here go to stderr as JSON, and no progress bar between the lines."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("triptych.serving", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
