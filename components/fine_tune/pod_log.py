"""A node's log, followed as it grows: across lost connections and restarted pods, each line once."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable

from components.fine_tune.trainer_api import TrainerApi

MARGIN = 60
"""Seconds that are asked for again after a lost connection; what was seen in them is left out."""
LAST_LINES = 30.0
"""Seconds to wait for the rest of the log when the job has ended."""


class PodLog:
    """Follows the log of a job's first node in a thread of its own and gives each line to ``take``.

    A log that cannot be read is said to be so and costs the lines, not the job.
    """

    def __init__(self, api: TrainerApi, job: str, take: Callable[[str], None], pause: float) -> None:
        self._api, self._job, self._take, self._pause = api, job, take, pause
        self._over = threading.Event()
        self._pod, self._seen, self._heard = "", "", 0.0
        self._complaint = ""
        self._thread = threading.Thread(target=self._follow, name=f"log of {job}", daemon=True)

    def __enter__(self) -> PodLog:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if exception[0] is None:
            self._thread.join(LAST_LINES)

    def _follow(self) -> None:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while True:
            over = self._over.is_set()  # before the last look, so that nothing comes after it
            try:
                self._read(follow=not over)
            except (ApiException, HTTPError, OSError, RuntimeError) as error:
                self._complain(f"the log of {self._job} cannot be read now, the job is unharmed: {error}")
            if over:
                return
            self._over.wait(self._pause)

    def _read(self, follow: bool) -> None:
        pod = self._api.first_node(self._job)
        if not pod:
            return
        if pod != self._pod:
            self._pod, self._seen = pod, ""
        since = math.ceil(time.monotonic() - self._heard) + MARGIN if self._seen else None
        response = self._api.log(pod, follow, since)
        try:
            for raw in response:
                stamp, _, line = raw.decode("utf-8", errors="replace").rstrip("\n").partition(" ")
                if stamp.rstrip("Z") > self._seen:
                    self._seen, self._heard = stamp.rstrip("Z"), time.monotonic()
                    self._take(line)
        finally:
            response.close()

    def _complain(self, words: str) -> None:
        if words != self._complaint:
            self._complaint = words
            print(words, file=sys.stderr, flush=True)
