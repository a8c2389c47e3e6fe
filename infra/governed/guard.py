"""The guard: one worker's ledger and promotion key, and every question that the server asks of them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from infra.governed.settings import Settings
from lineage.entries import Action, Entry, LedgerError, State
from lineage.ledger import Ledger
from lineage.promotion import Promotions, Vigil
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.witness import HighWaterMark, check_against, latest_checkpoint, open_witness


class Guard:
    """What may happen to governed models, those that the ledger knows. Safe to use from several threads."""

    def __init__(self, settings: Settings, backend: str) -> None:
        """Open the ledger and the keys.

        Args:
            backend: MLflow's database, which the guard itself uses without being guarded.

        Raises:
            LineageError: the ledger does not hold, is shorter than this server saw it, or names other keys.
        """
        self.settings, self.backend = settings, backend
        # Two readers, so that appending does not wait for a move, which reads whole models.
        self._ledger, self._ledger_lock = Ledger(settings.ledger, settings.root), Lock()
        self._moving, self._moving_lock = Ledger(settings.ledger, settings.root), Lock()
        self._signer = open_signer(settings.promotion_key, self._ledger.state.key_of("promotion"))
        witness_signer = open_signer(settings.witness_key, self._ledger.state.key_of("witness"))
        self._vigil = Vigil(open_witness(settings.witness), witness_signer)
        self._check_mark(self._ledger)

    def check_witness(self) -> None:
        """Check that the ledger is as long as the witness was told.

        Raises:
            LineageError: it was cut short or rewritten.
        """
        seen = latest_checkpoint(self._vigil.witness, self._ledger.state)
        if seen:
            check_against(self._ledger.all, seen, "the witness")

    @contextmanager
    def state(self) -> Iterator[State]:
        """The ledger's state now; it holds still as long as the block lasts."""
        with self._ledger_lock:
            yield self._ledger.refresh()

    def governs(self, model: str) -> bool:
        """Whether the ledger knows a model of this name."""
        with self.state() as state:
            return any(name == model for name, _ in state.versions)

    def knows(self, model: str, version: str) -> bool:
        """Whether the ledger knows this version."""
        with self.state() as state:
            return (model, version) in state.versions

    def models(self) -> list[str]:
        """The names of all governed models."""
        with self.state() as state:
            return sorted({name for name, _ in state.versions})

    def runs(self) -> set[str]:
        """The MLflow runs behind the versions that the ledger knows."""
        with self.state() as state:
            return {registered.mlflow_run for registered in state.versions.values()}

    def entries(self, after: int) -> list[Entry]:
        """The entries from index ``after`` on."""
        return self._ledger.store.entries(after)

    def accept(self, entry: Entry) -> None:
        """Append an entry that a pipeline or the root key signed.

        Raises:
            ConflictError: another entry came first.
            LedgerError: it does not hold, or only the server may say it.
        """
        with self._ledger_lock:
            known = self._ledger.refresh().keys.get(entry.key)
            if known and known.role in ("promotion", "witness"):
                raise LedgerError(f"{entry.name} is signed by the {known.role} key: moves go through this server")
            self._ledger.accept(entry)

    def promote(self, model: str, version: str, user: str) -> None:
        """What setting the alias ``champion`` asks for.

        Raises:
            LineageError: it may not be, with the reason.
        """
        with self._promotions(model) as promotions:
            state = promotions.ledger.state
            champion, registered = state.champion(model), state.versions.get((model, version))
            former = any(past.version == version for past in state.champions.get(model, []))
            current = champion is not None and champion.version == version
            if former and not current and registered and registered.candidate not in state.withdrawn:
                raise LedgerError(
                    f"version {version} of {model} was champion before; going back needs a reason: triptych rollback"
                )
            promotions.promote(version, user)

    def move(self, action: Action, model: str, version: str, user: str, reason: str) -> None:
        """Roll back, withdraw or override; who may do so was checked before.

        Raises:
            LineageError: it may not be, with the reason.
        """
        with self._promotions(model) as promotions:
            getattr(promotions, action)(version, user, reason)

    def reconcile(self) -> list[str]:
        """Make registry and ledger agree for all governed models; says what did not."""
        said = []
        for model in self.models():
            with self._promotions(model) as promotions:
                said += [f"{model}: {line}" for line in promotions.reconcile()]
        return said

    @contextmanager
    def _promotions(self, model: str) -> Iterator[Promotions]:
        with self._moving_lock:
            self._check_mark(self._moving)
            yield Promotions(self._moving, self._signer, Registry(self.backend, model), self._vigil)

    def _check_mark(self, ledger: Ledger) -> None:
        mark = self.settings.mark
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            with mark.with_suffix(".lock").open("w") as lock:
                # Read within the lock: a worker that is a moment behind would take the ledger for a shorter one.
                fcntl.flock(lock, fcntl.LOCK_EX)
                state = ledger.refresh()
                HighWaterMark(mark).check(ledger.all, state)
        except OSError as error:
            raise LedgerError(f"the high-water mark {mark} cannot be used: {error}") from error
