"""The champion slot: which model draws now, as the promotion channel says, and nothing that does not hold.

    verify (channel) -> fetch by digest -> signature -> load -> warm -> swap

Looking at the channel never waits for a fetch, so a withdrawal counts with the next look whatever else is under way.
A swap is one assignment on the event loop; whoever draws holds the model that it began with.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lineage.artifacts import WEIGHTS_FOLDER
from lineage.channel.champion import CHAMPION, Champion
from lineage.channel.client import Channel
from lineage.channel.errors import ChannelError, UnreachableError
from lineage.digests import LineageError, hex_of
from lineage.files import write_whole
from lineage.signing import read_public
from serving.backend import Backend, BackendError, UnusableError
from serving.background import in_background
from serving.errors import GoneError, NotReadyError, UnknownError
from serving.fetch import UntrueError, check_model, fetch, tidy
from serving.memory import free_memory
from serving.settings import Settings
from serving.telemetry import Metrics, say
from serving.users import Users

ROOM = 1.5
"""Bytes of memory that a loaded model takes, for each byte of its weights."""
SLOWEST = 300.0
"""Seconds between two tries of a champion that was refused, at most."""
SIGNATURE = "model.sig"


@dataclass
class Loaded:
    """A model that the backend holds."""

    champion: Champion
    sampling: dict[str, Any]
    """What it was judged with."""
    name: str
    """What the backend calls it; each loading has its own."""
    users: Users = field(default_factory=Users)
    """Requests that draw with it; each holds it, also past a swap."""

    @property
    def named(self) -> dict[str, Any]:
        """Model, version and digest, as answers, credentials, metrics and the log name it."""
        champion = self.champion
        return {"model": champion.model, "version": champion.version, "digest": str(champion.weights)}

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.size for file in self.champion.files)


class Slot:
    """Follows a channel; all but what is said to run in a thread runs on one event loop.

    Args:
        memory: bytes that are free now, measured.
    """

    def __init__(
        self, settings: Settings, backend: Backend, metrics: Metrics, memory: Callable[[], int] = free_memory
    ) -> None:
        self.settings, self.backend, self.metrics, self.memory = settings, backend, metrics, memory
        self.model = str(settings.model)
        self.current: Loaded | None = None
        self.previous: Loaded | None = None
        self.trouble = ""
        """Why the channel was not believed last; empty: it was."""
        self.refused = ""
        """Which version was not taken up, and why; empty: none."""
        self.expires: datetime | None = None
        self._channel = Channel(settings.root.read_bytes(), settings.channel, settings.state / "channel")
        self._keys = [read_public(path) for path in settings.model_keys]
        self._known = {one.version: one for one in self._kept()}
        self._withdrawn = frozenset[str]()
        self._reader = ThreadPoolExecutor(1, "channel")
        self._awake = asyncio.Event()
        self._loads = itertools.count(1)
        self._said: Champion | None = None
        self._taking: tuple[Champion, asyncio.Task[None], threading.Event] | None = None
        self._tries: dict[str, tuple[int, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Following

    async def follow(self) -> None:
        """Look at the channel, every `Settings.poll` seconds and when woken, until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except Exception as error:
                    self.trouble = f"the channel could not be read: {type(error).__name__}"
                    say("following failed; it goes on", logging.ERROR, broken=True)
                self._awake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), self.settings.poll)
                    await asyncio.sleep(min(0.2, self.settings.poll))  # a storm of wake-ups is one look
        finally:
            self._stop_taking()
            self._reader.shutdown(wait=False, cancel_futures=True)

    def wake(self) -> None:
        """Look now; what the channel says is checked as ever."""
        self._awake.set()

    async def look(self) -> None:
        """Read the channel and act: withdrawals at once, a new champion as soon as it is ready."""
        try:
            said = await asyncio.get_running_loop().run_in_executor(self._reader, self._read)
        except LineageError as error:
            if self.trouble != str(error):
                level = logging.WARNING if isinstance(error, UnreachableError) else logging.ERROR
                say("the channel was not believed", level, reason=str(error))
            self.trouble = str(error)
            return
        self.trouble, self._said = "", said
        self._withdraw(said)
        wanted = self._wanted(said)
        if wanted is None or (self.current and self.current.champion.folder == wanted.folder):
            self._stop_taking()
            self.refused = "" if wanted or self.settings.mode == "follow" else self.refused
        elif self.previous and self.previous.champion.folder == wanted.folder:
            self._stop_taking()
            self.previous.champion = wanted
            self._swap(self.previous)
        else:
            self._take(wanted)

    def _read(self) -> Champion:
        """What the channel says now; runs in the reader's thread."""
        self._channel.refresh()
        self.expires = self._channel.expires
        known = self._channel.models()
        if not self.model and len(known) != 1:
            raise ChannelError(f"the channel tells of {', '.join(known) or 'no model'}; say which one: --model")
        self.model = self.model or known[0]
        return self._channel.champion(self.model)

    def _wanted(self, said: Champion) -> Champion | None:
        if self.settings.mode == "follow":
            return said if said.version else None
        kept = said if said.version == self.settings.version else self._known.get(self.settings.version)
        if kept is None:
            self.refused = f"version {self.settings.version} is not champion, and was never fetched here"
        return kept if kept and not self._is_withdrawn(kept) else None

    def _withdraw(self, said: Champion) -> None:
        """Draw no more with what was withdrawn, nor with a former champion where nobody is champion any more."""
        self._withdrawn = frozenset(said.withdrawn)
        over = self.settings.mode == "follow" and not said.version
        for loaded in self.loaded():
            if over or self._is_withdrawn(loaded.champion):
                say("no new picture is drawn", logging.WARNING, reason="withdrawn", **loaded.named)
                self._retire(loaded)
        if over:
            self._stop_taking()

    def _is_withdrawn(self, champion: Champion) -> bool:
        return not self._withdrawn.isdisjoint((champion.weights or "", champion.folder or ""))

    # Taking a champion up

    def _take(self, wanted: Champion) -> None:
        folder, now = str(wanted.folder), time.monotonic()
        if (loading := self._loading()) and loading.folder == folder:
            return
        if now < self._tries.get(folder, (0, 0.0))[1]:
            return
        self._stop_taking()
        stop = threading.Event()
        self._taking = (wanted, asyncio.create_task(self._try(wanted, stop)), stop)

    def _loading(self) -> Champion | None:
        return self._taking[0] if self._taking and not self._taking[1].done() else None

    def _stop_taking(self) -> None:
        if self._taking:
            self._taking[2].set()
            self._taking[1].cancel()
            self._taking = None

    async def _try(self, wanted: Champion, stop: threading.Event) -> None:
        began, folder = time.monotonic(), str(wanted.folder)
        named: dict[str, Any] = {"version": wanted.version, "digest": wanted.weights, "folder": folder}
        try:
            loaded = await self._load(wanted, stop)
        except (LineageError, BackendError, OSError) as error:
            count = self._tries.get(folder, (0, 0.0))[0] + 1
            self._tries[folder] = (count, time.monotonic() + min(SLOWEST, self.settings.poll * 2 ** (count - 1)))
            self.refused = f"version {wanted.version} was refused: {error}"
            untrue = isinstance(error, UntrueError | UnusableError)
            self.metrics.swaps.labels("refused" if untrue else "failed").inc()
            say("champion not taken up", logging.ERROR, reason=str(error), **named)
            return
        self._tries.pop(folder, None)
        self._swap(loaded)
        say("champion swapped", seconds=round(time.monotonic() - began, 3), **named)

    async def _load(self, wanted: Champion, stop: threading.Event) -> Loaded:
        """Fetch, check, load and warm a champion; frees what it took where that fails."""
        store = self.settings.models
        kept = {str(one.champion.folder) for one in self.loaded()} | {str(wanted.folder)}
        await in_background(tidy, store, kept)
        folder = await in_background(fetch, wanted, store, self.settings.artifacts, stop)
        read, run = self._channel.document, asyncio.get_running_loop().run_in_executor
        signature = await run(self._reader, read, self.model, SIGNATURE) if self._keys else None
        sampling = await in_background(check_model, wanted, folder, signature, self._keys)
        loaded = Loaded(wanted, sampling, f"{wanted.model}@{wanted.version} #{next(self._loads)}")
        if self.previous and self.memory() < loaded.bytes * ROOM:
            self._retire(self.previous)
        try:
            await self.backend.load(loaded.name, folder / WEIGHTS_FOLDER, sampling)
            await self.backend.warm(loaded.name)
            drawn = await self.backend.digest(loaded.name)
            if drawn and drawn != wanted.weights:
                raise UntrueError(f"the backend draws with {drawn}, the channel names {wanted.weights}")
        except BaseException as error:
            await asyncio.shield(self.backend.unload(loaded.name))
            if isinstance(error, LineageError | BackendError) or not isinstance(error, Exception):
                raise
            raise UnusableError(f"version {wanted.version} does not load: {type(error).__name__}") from error
        write_whole(store / f"{hex_of(str(wanted.folder))}.json", wanted.content())
        return loaded

    def _swap(self, loaded: Loaded) -> None:
        """Draw with ``loaded`` from now on; keep the one before it where memory allows."""
        before, older = self.current, self.previous
        self.current, self.previous = loaded, before
        if older and older is not loaded:
            self._retire(older)
        if before and self.memory() < loaded.bytes * ROOM:
            self._retire(before)  # it stays on the disk
        self.refused = ""
        self._known[loaded.champion.version] = loaded.champion
        self.metrics.swaps.labels("done").inc()
        self.metrics.model.clear()
        self.metrics.model.labels(**loaded.named).set(1)

    def _retire(self, loaded: Loaded) -> None:
        """Draw no new picture with a model, and unload it once nobody uses it."""
        self.current = None if loaded is self.current else self.current
        self.previous = None if loaded is self.previous else self.previous

        async def end() -> None:
            await loaded.users.gone()
            await self.backend.unload(loaded.name)

        task = asyncio.create_task(end())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, loaded: Loaded) -> None:
        """The backend does not have a model any more: load it again."""
        if loaded is self.current:
            say("the backend lost its model", logging.ERROR, **loaded.named)
            self.current = None
            self._tries.pop(str(loaded.champion.folder), None)
            self.wake()

    def _kept(self) -> Iterator[Champion]:
        """Champions that were taken up here before."""
        for path in sorted(Path(self.settings.models).glob("*.json"), key=lambda path: path.stat().st_mtime):
            with suppress(ChannelError):  # a file that somebody damaged tells of no champion
                yield Champion.read(path.read_bytes())

    # Answering

    def resolve(self, asked: str | None) -> Loaded:
        """The model that ``NAME`` or ``NAME@VERSION`` means now; None: the champion.

        Raises:
            UnknownError: there is none of this name, or this version is not loaded.
            GoneError: it was withdrawn.
            NotReadyError: there is no champion here yet, or nobody vouches for it any more.
        """
        name, _, version = (asked or self.model).partition("@")
        if self.model and name != self.model:
            raise UnknownError(f"there is no model {name!r}; this server draws with {self.model}")
        found = next((one for one in self.loaded() if one.champion.version == version), None)
        if loaded := found if version else self.current:
            if self.overdue > self.settings.max_staleness:
                raise NotReadyError(f"nobody vouches for the champion since {self.expires}: the channel expired")
            return loaded
        if version and (known := self._known.get(version)):
            if self._is_withdrawn(known):
                raise GoneError(f"version {version} of {name} was withdrawn")
            raise UnknownError(f"version {version} of {name} is not loaded any more")
        if version and self.current:
            raise UnknownError(f"there is no version {version} of {name} here; {self.current.champion.version} draws")
        if self._withdrawn and self._said and self._wanted(self._said) is None:
            raise GoneError(f"the champion of {name} was withdrawn, and no other version is champion")
        raise NotReadyError(f"no champion of {name or 'any model'} is loaded yet")

    @property
    def overdue(self) -> float:
        """Seconds since the channel's timestamp expired; 0 while somebody vouches for it."""
        return max(0.0, (datetime.now(UTC) - self.expires).total_seconds()) if self.expires else 0.0

    def loaded(self) -> list[Loaded]:
        """The champion, then the one before it, as far as they are loaded."""
        return [one for one in (self.current, self.previous) if one]

    def status(self) -> dict[str, Any]:
        """Whether it draws, with what, and what is wrong."""
        overdue = self.overdue
        loading, ready = self._loading(), self.current is not None and overdue <= self.settings.max_staleness
        problems = [self.trouble] if self.trouble else []
        problems += [f"the channel expired at {self.expires}: nobody vouches for the champion"] if overdue else []
        problems += [self.refused] if self.refused else []
        return {
            "ready": ready,
            "state": "not ready" if not ready else "degraded" if problems else "ready",
            "problems": problems,
            "model": self.model,
            "version": self.current.champion.version if self.current else None,
            "digest": self.current.champion.weights if self.current else None,
            "previous": self.previous.champion.version if self.previous else None,
            "loading": loading.version if loading else None,
            "expires": self.expires.isoformat() if self.expires else None,
            "overdue_seconds": overdue,
            "mode": self.settings.mode,
            "signature": "checked" if self._keys else f"not checked: no model_keys; {CHAMPION} names every file",
        }
