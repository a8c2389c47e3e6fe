"""A real MLflow store with a real ledger beside it, and candidates that were judged, without training anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from components.register.register import create, new_attempt, upload
from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing
from lineage.channel.client import Channel
from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Action, Judged, LedgerError, Registered
from lineage.faults import FAULT_VARIABLE
from lineage.moves import Mover
from lineage.policy import policy_digest
from lineage.records import RunContext
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.state import State
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement

MODEL = "portraits"
EVALUATION, GATE = {"evaluation_set": "sha256:set"}, {"alpha": 0.025}
POLICY = policy_digest(EVALUATION, GATE)


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

    def mover(self, run: str = "") -> Mover:
        """Moves by a person, or by a run of its own candidate."""
        return replace(self.home.mover(self.store), run=run)

    def candidate(self, name: str, incumbent: str, decision: str = "promote", policy: str = POLICY) -> str:
        """Judge and register weights called ``name``; gives the version's number."""
        self.home.set_policy(MODEL, EVALUATION, GATE, "for a test")
        weights, around, verdict = (self.folder / kind / name for kind in ("candidates", "around", "verdicts"))
        for made in (weights, around / WEIGHTS_FOLDER, verdict):
            made.mkdir(parents=True, exist_ok=True)
        (weights / "weights.safetensors").write_text(name)
        (around / WEIGHTS_FOLDER / "weights.safetensors").write_text(name)
        (around / "MLmodel").write_text(
            f"flavors:\n  python_function:\n    loader_module: {LOADER}\n# model of {name}\n"
        )
        ledger, store, gate = self.home.open(), self.store, open_signer(self.home.uri("gate"))
        run, digest = f"run-{name}-{ledger.state.size}", digest_path(weights)
        predicate = {"decision": decision, "figures": [], "run": run}
        said = make_statement(VERDICT, {"candidate": digest}, predicate)
        judged = Judged(
            run=run,
            model=MODEL,
            candidate=digest,
            incumbent=incumbent,
            decision=decision,
            verdict=write_statement(said, verdict / VERDICT_FILE, gate),
            evaluation="",
            policy=policy,
        )
        ledger.append(judged, gate)
        mlflow_run, attempt = store.open_run(run), new_attempt()
        registered = Registered(
            run=run,
            model=MODEL,
            version="",
            candidate=digest,
            folder=folder_digest(listing(around)),
            verdict=judged.verdict,
            training_key="",
            evaluation_terms="",
            mlflow_run=mlflow_run,
            evidence={"verdict": digest_path(verdict)},
        )
        (around / WEIGHTS_FOLDER / "weights.safetensors").unlink()
        source = upload(store, mlflow_run, around, weights, {"verdict": verdict}, attempt)
        version = create(store, mlflow_run, source, {}, "")
        ledger.append(registered.model_copy(update={"version": version.number}), open_signer(self.home.uri("run")))
        return version.number

    def digest(self, name: str) -> str:
        return digest_path(self.folder / "candidates" / name)

    def announced(self) -> str:
        """The champion's version, as a stranger reads it from the channel; empty where nothing was published."""
        if not (self.home.channel / "metadata" / "timestamp.json").exists():
            return ""
        root = (self.home.channel / "metadata" / "1.root.json").read_bytes()
        channel = Channel(root, str(self.home.channel), self.folder / "a-server")
        channel.refresh()
        return channel.champion(MODEL).version if MODEL in channel.models() else ""

    def agrees(self) -> str:
        """The champion on which alias, ledger, tags and channel agree; fails where they do not."""
        state, versions = self.state, self.store.versions()
        champion = state.champion(MODEL)
        said = champion.version if champion else ""
        holders = [version.number for version in versions if "champion" in version.aliases]
        standing = [version.number for version in versions if version.tags.get("standing") == "champion"]
        assert holders == standing == ([said] if said else []), (holders, standing, said)
        assert self.announced() == said
        return said


def move(folder: Path, action: Action, version: str, fault: str = "") -> None:
    """A move, for a process of its own; what it is refused with goes into ``refused``."""
    os.environ[FAULT_VARIABLE] = fault
    mover = World(folder).mover()
    try:
        mover.move(action, version, "" if action == "promote" else "because")
    except LedgerError as error:
        (folder / "refused").write_text(repr(error))
        raise
