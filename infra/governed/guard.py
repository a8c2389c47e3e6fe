"""The guard: one worker's ledger and promotion key, and every question that the server asks of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

from infra.governed.settings import Settings
from infra.governed.writes import Writes
from lineage.channel.publisher import Publisher
from lineage.entries import Action, Entry, LedgerError, PolicySet, Registered
from lineage.ledger import Ledger
from lineage.memory import Memory
from lineage.moves import LocalMover
from lineage.projection import Followed
from lineage.registry import Registry
from lineage.state import State
from lineage.witness import Checkpoint, WitnessWriter, check_against, hear, open_witness

LOG = logging.getLogger(__name__)
MOST_MOVES = 10
"""At once in one worker, which answers requests in 40 threads."""


@dataclass(frozen=True)
class LoggedWitness(WitnessWriter):
    """A witness whose failures are logged and shown; what was written in the ledger stands without it."""

    report: dict[str, Any] = field(default_factory=lambda: {"size": 0, "error": ""})
    """How much this worker told it last, and what went wrong since."""

    def write(self, state: State) -> Checkpoint:
        try:
            made = super().write(state)
        except Exception as error:
            self.report["error"] = str(error)
            LOG.error("the witness was not told of %d entries, the next one tries again: %s", state.size, error)
            raise
        self.report.update(size=made.size, error="")
        return made


class Guard:
    """What may happen to governed models, those that the ledger knows. Safe to use from several threads."""

    def __init__(self, settings: Settings, backend: str, artifacts: Path | None = None) -> None:
        """Open the ledger and the keys.

        Args:
            backend: MLflow's database, which the guard itself uses without being guarded.
            artifacts: the folder of this machine that ``mlflow-artifacts:`` places lie in, if there is one.

        Raises:
            LineageError: the ledger does not hold, is shorter than this server saw it, or names other keys.
        """
        self.settings, self.backend, self.artifacts = settings, backend, artifacts
        # Two readers, so that appending does not wait for a move, which reads whole models.
        memory = Memory(settings.mark.parent, settings.mark.stem)  # also the lock of its workers
        self.ledger, self._lock = Ledger.open(settings.ledger, settings.root, memory), Lock()
        self._moving, self._moving_lock = Ledger.open(settings.ledger, settings.root, memory), Lock()
        self._signer = self.ledger.signer("promotion", settings.promotion_key)
        self.witness = LoggedWitness(
            open_witness(settings.witness), self.ledger.signer("witness", settings.witness_key)
        )
        self._moves = BoundedSemaphore(MOST_MOVES)
        self.writes = Writes(settings.mark.with_suffix(".writes"))
        self._channel: Publisher | None = None
        if settings.channel:
            life = timedelta(hours=settings.channel_life)
            mark = settings.mark.with_suffix(".channel")
            self._channel = Publisher(settings.channel, self._signer, self.witness.signer, life, mark)
        self.folder_of: Callable[[Registered], str] = lambda registered: ""
        """Finds the `place` of a version's folder, refuses one that is not in its run's own; see `stores.install`."""
        self._found: dict[tuple[str, str, str], str] = {}
        self._folders: tuple[str, Mapping[str, str]] = "", {}

    def check_witness(self) -> None:
        """Check that the ledger is as long as the witness was told.

        Raises:
            LedgerError: it was cut short or rewritten, or the witness cannot be read.
        """
        with self.state() as state:
            try:
                told = hear(self.witness.witness, state, whole=False)
            except Exception as error:  # of whatever store it is
                raise LedgerError(f"the witness {self.settings.witness} cannot be read: {error}") from error
            for name, why in told.unreadable.items():
                LOG.warning("checkpoint %s of the witness says nothing: %s", name, why)
            if told.latest:
                check_against(state, self.ledger.digest_at, told.latest, "the witness")

    @contextmanager
    def state(self) -> Iterator[State]:
        """The ledger's state now; it holds still as long as the block lasts."""
        with self._lock:
            yield self.ledger.refresh()

    def governs(self, model: str) -> bool:
        """Whether the ledger knows versions of a model of this name."""
        with self.state() as state:
            return model in state.versions

    def keeps(self, model: str) -> bool:
        """Whether a model is governed already, or its policy is pinned, so that it is about to be."""
        with self.state() as state:
            return model in state.versions or model in state.policies

    def runs(self) -> set[str]:
        """The MLflow runs behind the versions that the ledger knows."""
        with self.state() as state:
            return {known.mlflow_run for versions in state.versions.values() for known in versions.values()}

    def folders(self) -> Mapping[str, str]:
        """The `place` of the folder of each version that the ledger knows -> the version's name."""
        with self.state() as state:
            if self._folders[0] != state.head:
                known = [registered for versions in state.versions.values() for registered in versions.values()]
                self._folders = (
                    state.head,
                    {self._folder(one): one.name for one in known},
                )
            return self._folders[1]

    def _folder(self, known: Registered) -> str:
        version = known.model, known.version, known.mlflow_run
        if version not in self._found:
            try:
                self._found[version] = self.folder_of(known)  # once: through the server it never changes
            except LedgerError:
                return ""  # somebody changed MLflow's database; moves of this version are refused
        return self._found[version]

    def accept(self, entry: Entry) -> None:
        """Append an entry that a pipeline or the root key signed.

        Raises:
            ConflictError: another entry came first.
            LedgerError: it does not hold, or only the server may say it.
        """
        if isinstance(entry.body, Registered):
            self.folder_of(entry.body)
        with self.state() as state:
            known = state.keys.get(entry.key)
            if known and known.role in ("promotion", "witness"):
                raise LedgerError(f"{entry.name} is signed by the {known.role} key: moves go through this server")
            self.ledger.accept(entry)
        self._tell_witness()

    def set_policy(self, policy: PolicySet) -> None:
        """Pin what a model's candidates are judged by; who may do so was checked before.

        Raises:
            LedgerError: it cannot be written.
        """
        with self.state():
            self.ledger.append(policy, self._signer)
        self._tell_witness()

    def move(self, action: Action, model: str, version: str, user: str, reason: str = "", run: str = "") -> list[str]:
        """Move the champion; who may do so was checked before. Setting the alias ``champion`` asks for ``promote``.

        Raises:
            LineageError: it may not be, with the reason.
        """
        with self._few_at_once():
            with self.state() as state:
                registered = state.registered(model, version)
            if registered and action != "withdraw":
                self.writes.await_end(self.folder_of(registered))
            with self._mover(model, user) as mover:
                mover.run = run
                said = mover.move(action, version, reason)
        LOG.warning("%s, asked for by %r: %s", model, user, "; ".join(said))  # MLflow's server shows no less
        return said

    def reconcile(self, model: str, user: str) -> Followed:
        """Make registry and channel agree with the ledger for a model; says what did not.

        Raises:
            LedgerError: the ledger knows no such model.
        """
        if not self.governs(model):
            raise LedgerError(f"the ledger knows no version of a model {model}")
        with self._few_at_once(), self._mover(model, user) as mover:
            return mover.reconcile()

    @contextmanager
    def _few_at_once(self) -> Iterator[None]:
        """Refuse moves beyond `MOST_MOVES`: each takes a thread of the worker, for as long as a model is read."""
        if not self._moves.acquire(blocking=False):
            raise LedgerError(f"{MOST_MOVES} moves are under way here already; ask again later")
        try:
            yield
        finally:
            self._moves.release()

    @contextmanager
    def _mover(self, model: str, user: str) -> Iterator[LocalMover]:
        with self._moving_lock:
            registry = Registry(self.backend, model)
            yield LocalMover(self._moving, self._signer, registry, user, self.witness, self._channel, self.artifacts)

    def _tell_witness(self) -> None:
        with self.state() as state:  # which also moves the high-water mark
            now = state.model_copy()
        with suppress(Exception):  # which was logged, and is shown
            self.witness.write(now)
