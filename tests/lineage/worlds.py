"""A real MLflow store with a real ledger beside it, and candidates that were judged, without training anything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, LedgerError, Registered, State
from lineage.promotion import FAULT_VARIABLE, Promotions
from lineage.records import RunContext
from lineage.registry import Registry
from lineage.signing import open_signer

MODEL = "portraits"


@dataclass(frozen=True)
class World:
    """A folder with ``mlflow.db``, artifacts and a ledger."""

    folder: Path

    @property
    def home(self) -> Embedded:
        return Embedded(self.folder / "lineage")

    @property
    def store(self) -> Registry:
        return Registry(f"sqlite:///{self.folder / 'mlflow.db'}", MODEL)

    @property
    def state(self) -> State:
        return self.home.open().state

    @property
    def base(self) -> str:
        return digest_bytes(b"the base model")

    @property
    def context(self) -> RunContext:
        """As a pipeline's steps see it."""
        return self.home.context("run-1", str(self.folder / "records"), self.store.tracking_uri)

    def promotions(self) -> Promotions:
        return self.home.promotions(self.store)

    def candidate(self, name: str, incumbent: str, decision: str = "promote") -> str:
        """Judge and register weights called ``name``; gives the version's number."""
        weights = self.folder / "candidates" / name
        weights.mkdir(parents=True, exist_ok=True)
        (weights / "weights.safetensors").write_text(name)
        digest, verdict = digest_path(weights), digest_bytes(f"{name} {incumbent} {decision}".encode())
        ledger, store = self.home.open(), self.store
        run = f"run-{name}-{ledger.state.size}"
        judged = Judged(run=run, candidate=digest, incumbent=incumbent, decision=decision, verdict=verdict)
        ledger.append(judged, open_signer(self.home.uri("gate")))
        mlflow_run = store.open_run(run)
        (self.folder / "empty").mkdir(exist_ok=True)
        version = store.register(
            mlflow_run, weights, self.folder / "empty", {}, {"candidate": digest, "verdict": verdict}, ""
        )
        registered = Registered(
            run=run,
            model=MODEL,
            version=version.number,
            candidate=digest,
            verdict=verdict,
            training_key="",
            evaluation_key="",
            mlflow_run=mlflow_run,
            evidence={},
        )
        ledger.append(registered, open_signer(self.home.uri("run")))
        return version.number

    def digest(self, name: str) -> str:
        return digest_path(self.folder / "candidates" / name)

    def agrees(self) -> str:
        """The champion on which alias, ledger and tags agree; fails where they do not."""
        state, versions = self.state, self.store.versions()
        champion = state.champion(MODEL)
        said = champion.version if champion else ""
        holders = [version.number for version in versions if "champion" in version.aliases]
        standing = [version.number for version in versions if version.tags.get("standing") == "champion"]
        assert holders == standing == ([said] if said else []), (holders, standing, said)
        assert not state.pending
        return said


def move(folder: Path, action: str, version: str, fault: str = "") -> None:
    """A move, for a process of its own; what it is refused with goes into ``refused``."""
    os.environ[FAULT_VARIABLE] = fault
    moves = World(folder).promotions()
    try:
        getattr(moves, action)(version, "somebody", *(["because"] if action != "promote" else []))
    except LedgerError as error:
        (folder / "refused").write_text(repr(error))
        raise
