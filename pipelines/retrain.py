"""One retraining on this machine, from configuration to outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from lineage.closing import CLOSING, Outcome, close, unclosed
from lineage.records import RunContext, StepRecord, read_records
from pipelines.checkout import checkout_commit
from pipelines.configuration import Configuration, local_path
from pipelines.narration import Narration
from pipelines.workspace import Workspace, stop_leftovers, workspace

Runner = Literal["processes", "containers"]
ATTEMPTS = 3
"""How often a candidate is judged anew because another champion came meanwhile."""


@dataclass(frozen=True)
class Finished:
    """A run that ended."""

    run: str
    outcome: Outcome
    records: dict[str, StepRecord]
    log: Path
    failure: str = ""
    """Which step failed and why, in one sentence."""


def retrain(configuration: Configuration, runner: Runner, root: Path, force: bool, console: Console) -> Finished:
    """Run the pipeline once in the work folder ``root``.

    Raises:
        WorkspaceError: the work folder cannot be used.
        KeyboardInterrupt: interrupted; nothing is left running, the run is closed as killed.
    """
    with workspace(root, runner) as place:
        place.lineage.open()
        for _ in range(ATTEMPTS):
            finished = _attempt(configuration, runner, place, force, console)
            place.lineage.checkpoint()
            if finished.outcome != "stale":
                break
            # Its candidate is known now: the next attempt only judges it against the new champion.
            console.print(finished.records["promote"].facts["stale"], highlight=False, soft_wrap=True)
            force = False
        return finished


def _attempt(configuration: Configuration, runner: Runner, place: Workspace, force: bool, console: Console) -> Finished:
    run = f"retraining-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    log = place.log(run)
    console.print(f"[bold]{run}[/bold]  ({place.root})", highlight=False)
    with (
        Narration(console, log) as narration,
        contextlib.redirect_stdout(narration),
        contextlib.redirect_stderr(narration),
        _runner(runner, configuration, place, run) as (image, context),
    ):
        failure = _run(configuration, context, image, force, place)
    records = read_records(str(place.records), run)
    return _finished(run, records, log, failure)


@contextlib.contextmanager
def _runner(
    runner: Runner, configuration: Configuration, place: Workspace, run: str
) -> Iterator[tuple[str, RunContext]]:
    """The image and context of the run, with KFP's local runner set up around it."""
    if runner == "containers":
        from infra.docker.engine import engine
        from infra.images.build import ensure_image
        from pipelines.containers import bucket_environment, containers
        from pipelines.tracking import tracking_server

        home = place.lineage
        keys = [home.keys / f"{role}.{half}" for role in ("run", "gate") for half in ("pem", "pub")]
        places = [where for _, where in configuration.places()]
        mounts = [*keys, *(Path(path) for path in map(local_path, places) if path)]
        store = local_path(configuration.data.store)
        if store:
            Path(store).mkdir(parents=True, exist_ok=True)
        writable = [Path(store)] if store else []
        credentials = bucket_environment([*places, configuration.data.store], os.environ)
        with engine():
            image = ensure_image()
            with (
                tracking_server(place) as server,
                containers(image, run, place.pipeline_root, mounts, writable, credentials=credentials),
            ):
                # As in a cluster: the server alone holds the promotion key and writes the ledger.
                held = {role: home.uri(role) for role in ("run", "gate")}
                asking = {"tracking_uri": server, "ledger": server, "keys": held, "witness": ""}
                yield image, _context(configuration, place, run).model_copy(update=asking)
        return
    from kfp import local

    from components.image import IMAGE

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(place.pipeline_root), raise_on_error=True)
    yield IMAGE, _context(configuration, place, run)


def _context(configuration: Configuration, place: Workspace, run: str) -> RunContext:
    """The run as processes see it: straight to the database, the ledger and all keys."""
    events = configuration.lineage.openlineage or str(place.events)
    return place.lineage.context(
        run,
        str(place.records),
        place.database,
        openlineage=events,
        state=str(place.state),
        commit=checkout_commit(),
    )


def _run(configuration: Configuration, context: RunContext, image: str, force: bool, place: Workspace) -> str:
    """Run the pipeline; returns why it failed, or nothing."""
    from pipelines.retraining import build_pipeline

    name = configuration.registry.model_name
    # Straight to the database: a server that steps in containers use may be gone by the time a run is closed.
    closing = _context(configuration, place, context.id)
    for lost in unclosed(context.records):
        close(closing.model_copy(update={"id": lost}), name, killed=True)
    try:
        build_pipeline(image)(run=context.model_dump(), force=force, **configuration.arguments())
    except KeyboardInterrupt:
        stop_leftovers(place)
        close(closing, name, killed=True)
        raise
    except Exception as error:  # reported as the run's failure, whole in its log
        logging.getLogger(__name__).exception("the pipeline failed")
        close(closing, name)
        return str(error)
    return ""


def _finished(run: str, records: dict[str, StepRecord], log: Path, failure: str) -> Finished:
    closing = records.get(CLOSING)
    result: Outcome = closing.facts["outcome"] if closing and not failure else "failed"
    broken = next((record for record in records.values() if record.status == "failed"), None)
    if broken is not None:
        failure = f"step {broken.step} failed: {broken.error}"
    elif result == "failed":
        failure = failure or "a step ended without leaving a record"
    return Finished(run, result, records, log, failure)
