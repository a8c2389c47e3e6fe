"""The work folder of local runs: what lies where, and that one run at a time uses it.

    mlflow.db     runs, metrics and the model registry
    artifacts/    what MLflow stores: weights and evidence
    pipeline/     KFP's pipeline root: what passes between steps, under records/ every step's record, and under state/
                  what a step that was cut off takes up again; OpenLineage events
    lineage/      the ledger, all signing keys, the witness's checkpoints, high-water marks, the promotion channel
    logs/         the whole output of each run

Every process of a run carries the folder in its environment, so that whatever a killed run left behind is found and
stopped, by the next run at the latest.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import psutil

from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.files import hold
from lineage.statements import VERDICT_FILE
from pipelines.errors import RequestError

MARK = "TRIPTYCH_WORK_DIR"


class Workspace:
    """A work folder; nothing is created."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.database = f"sqlite:///{self.root / 'mlflow.db'}"
        """The MLflow store as a URI."""
        self.artifacts = self.root / "artifacts"
        """Where MLflow keeps files."""
        self.pipeline_root = self.root / "pipeline"
        """What passes between steps; all of the folder that containers see."""
        self.records = self.pipeline_root / "records"
        self.state = self.pipeline_root / "state"
        """What outlives steps and runs."""
        self.events = self.pipeline_root / "openlineage.jsonl"

    @property
    def lineage(self) -> Embedded:
        """The ledger and its keys."""
        return Embedded(self.root / "lineage")

    def log(self, run: str) -> Path:
        """The file that gets the whole output of a run."""
        return self.root / "logs" / f"{run}.log"


@contextmanager
def workspace(root: Path, runner: str = "") -> Iterator[Workspace]:
    """Hold a work folder for one run: created, locked, and with nothing running in it.

    Args:
        runner: whose the folder is, or becomes; empty: anybody's.

    Raises:
        RequestError: another run uses it, it belongs to another runner, or it cannot be written.
    """
    place = Workspace(root)
    try:
        for folder in (place.artifacts, place.records, place.state, place.root / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (place.root / "lock").open("a")
        free = hold(lock, patience=0)
    except OSError as error:
        raise RequestError(f"the work folder {root} cannot be written: {error.strerror}") from error
    with lock:
        if not free:
            raise RequestError(f"another run uses {root}; wait for it, or give another --work-dir")
        _claim(place, runner)
        stop_leftovers(place)
        try:
            with patch.dict(os.environ, {MARK: str(place.root)}), terminations_interrupt():
                yield place
        finally:
            stop_leftovers(place)


def prune(place: Workspace, keep: int) -> tuple[int, int]:
    """Delete the logs of all but the last ``keep`` runs, and what their steps passed to each other.

    Records stay, because the ledger names every one; so does unfinished work, and a folder that holds a verdict which
    the ledger knows and of which no version was registered, because it is nowhere else.

    Returns:
        How many folders and logs were deleted, and how many bytes were in them.

    Raises:
        RequestError: a run uses the work folder.
        LineageError: the ledger cannot be read.
    """
    with workspace(place.root):
        state = place.lineage.open().state
        stored = {one.verdict for versions in state.versions.values() for one in versions.values()}
        only_here = state.verdicts.keys() - stored
        passed = [path for path in place.pipeline_root.iterdir() if path.is_dir()]
        passed = [path for path in passed if path not in (place.records, place.state)]
        old = [
            path
            for kind in (passed, list((place.root / "logs").glob("retraining-*.log")))
            for path in sorted(kind, key=lambda one: one.stat().st_mtime)[: max(0, len(kind) - keep)]
            if only_here.isdisjoint(map(digest_path, path.rglob(VERDICT_FILE)))
        ]
        size = 0
        for path in old:
            size += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return len(old), size


def stop_leftovers(place: Workspace) -> None:
    """Kill every other process that a run in this folder started."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(place.root):
                process.kill()


def _claim(place: Workspace, runner: str) -> None:
    # Versions made by processes name files, those made in containers a server: neither can read the other's.
    owner = place.root / "runner"
    if runner and not owner.exists():
        owner.write_text(runner)
    elif runner and owner.read_text() != runner:
        raise RequestError(f"{place.root} belongs to runs in {owner.read_text()}; give another --work-dir")


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """Let SIGTERM end this block as Ctrl-C does, unless somebody handles it already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
