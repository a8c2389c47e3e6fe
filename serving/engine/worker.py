"""The one thread that computes: it admits pictures, takes a step with each group in turn, and shows what is done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from serving.backend import BackendError, GoneError
from serving.engine.model import Batch
from serving.engine.picture import Picture
from serving.engine.text import TextCache
from serving.engine.turns import Turns
from serving.telemetry import say


class Worker:
    """Draws what is submitted until it is stopped. Should its thread die, what it held fails and a new one starts.

    Args:
        threads: of torch; None: what torch chose, at most the CPUs that the container grants.
        text: what was read before.
    """

    def __init__(self, threads: int | None, text: TextCache) -> None:
        self._threads, self._text = threads, text
        self._changed = threading.Condition()
        self._arrived: deque[Picture] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopped = False
        self._reset()
        self._start()

    def _reset(self) -> None:
        self.turns = Turns(lambda one: one.model.limit(one.plan.height, one.plan.width))
        self.occupancy = 0.0
        self._batches: dict[Any, Batch] = {}
        self._stepped = 0.0
        """Seconds of the last step."""

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="triptych-engine", daemon=True)
        self._thread.start()

    # Called from the event loop

    def submit(self, one: Picture) -> None:
        """Have a picture drawn."""
        with self._changed:
            if self._stopped:
                raise GoneError("the server is closing")
            self._arrived.append(one)
            self._changed.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Have ``work`` done between two steps."""
        future: Future[Any] = Future()
        with self._changed:
            if self._stopped:
                raise GoneError("the server is closing")
            self._jobs.append((work, future))
            self._changed.notify()
        return future

    def wake(self) -> None:
        """Look at the pictures again: one of them ended."""
        with self._changed:
            self._changed.notify()

    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._arrived) + len(self.turns.waiting)

    def stop(self) -> None:
        """End; what is in work or waits fails with `GoneError`. Returns when the thread is gone."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    # The thread

    def _main(self) -> None:
        try:
            torch.set_num_threads(self._threads or min(torch.get_num_threads(), granted_cpus()))
            with torch.inference_mode():
                while not self._stopped:
                    self._turn()
            self._fail_all(GoneError("the server is closing"))
        except BaseException as error:
            say("the engine's thread died; a new one starts", logging.ERROR, broken=True)
            self._fail_all(BackendError(f"the engine's thread died of {type(error).__name__}; ask again"))
            self._reset()
            self._start()

    def _turn(self) -> None:
        with self._changed:
            while not (self._arrived or self._jobs or self._stopped or self.turns):
                self.occupancy = 0.0
                self._changed.wait()
            while self._arrived:
                self.turns.waiting.append(self._arrived.popleft())
        self._drop()
        if self._jobs:
            self._do(*self._jobs.popleft())
        self._admit()
        if group := self.turns.next():
            began = time.monotonic()
            self._step(group)
            self._stepped = time.monotonic() - began

    def _do(self, work: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else BackendError(f"the engine died: {error!r}"))
            if not isinstance(error, Exception):
                raise

    def _drop(self) -> None:
        """Free the places of pictures that nobody waits for any more."""
        for one in self.turns:
            if late := one.too_late():
                one.tell(late)
            if one.ended:
                self.turns.remove(one)
        self._batches = {key: batch for key, batch in self._batches.items() if key in self.turns.groups}

    def _admit(self) -> None:
        """Bring in who has a place; reading their prompts takes no longer than one step, so that nobody is held up."""
        until = time.monotonic() + self._stepped
        while one := self.turns.admit():
            one.lap("queue")
            self._try(one, lambda one=one: one.model.begin(one, self._text))  # type: ignore[misc]
            one.lap("text")
            if time.monotonic() >= until:
                return

    def _step(self, group: list[Picture]) -> None:
        """One step of a group. Where it fails, each picture is tried by itself, and only those that fail again end."""
        key = group[0].key
        batch = self._batches.get(key)
        try:
            if batch is None or batch.members != group:
                batch = self._batches[key] = Batch(group)
            self.occupancy = batch.rows / max(batch.rows, group[0].model.limit(*key[1:3]))
            batch.step()
        except Exception as error:
            self._batches.pop(key, None)
            if len(group) > 1:
                say("a batch failed and is taken apart", logging.WARNING, broken=True, pictures=len(group))
            self._narrow(group, error)
            for one in list(group):
                self._try(one, lambda one=one: Batch([one]).step())  # type: ignore[misc]
        for one in list(group):
            self._show(one)

    def _show(self, one: Picture) -> None:
        """Hand out the preview that is due, or the finished picture."""
        if one.step == one.plan.steps:
            self._try(one, lambda: one.tell(one.model.show(one, one.latents)))
            self.turns.remove(one)
        elif one.step in one.previews:
            self._try(one, lambda: one.tell(one.model.show(one, one.clean)))

    def _narrow(self, group: list[Picture], error: Exception) -> None:
        """Batches as large as this one are not tried again where memory did not suffice."""
        if isinstance(error, torch.OutOfMemoryError):
            rows, plan = sum(one.rows for one in group), group[0].plan
            group[0].model.limits[plan.height, plan.width] = max(1, rows // 2)

    def _try(self, one: Picture, work: Callable[[], Any]) -> None:
        """Do ``work`` for one picture; an error ends that picture alone."""
        try:
            work()
        except BackendError as error:
            one.tell(error)
            self.turns.remove(one)
        except Exception as error:
            say("a drawing failed", logging.ERROR, broken=True, drawing=one.drawing.id)
            one.tell(BackendError(f"drawing failed: {type(error).__name__}: {error}"))
            self.turns.remove(one)

    def _fail_all(self, error: BackendError) -> None:
        with self._changed:
            for one in (*self.turns, *self._arrived):
                one.tell(error)
            for _, future in self._jobs:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            self._arrived.clear()
            self._jobs.clear()


def granted_cpus() -> int:
    """CPUs that this process may keep busy: of its affinity, and of its control group where that grants fewer."""
    import os
    from pathlib import Path

    cpus = len(os.sched_getaffinity(0))
    granted = Path("/sys/fs/cgroup/cpu.max")
    if granted.is_file():
        quota, period = granted.read_text().split()
        cpus = cpus if quota == "max" else min(cpus, max(1, int(quota) // int(period)))
    return cpus
