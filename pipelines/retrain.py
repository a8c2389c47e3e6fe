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

from components.close_run.close import Outcome, close, unclosed
from infra.checkout import checkout_commit
from lineage.records import CLOSING, RunContext, StepRecord, read_records
from pipelines.configuration import Configuration, local_path, policy_of
from pipelines.narration import Narration, say
from pipelines.steps import Image
from pipelines.workspace import Workspace, stop_leftovers, workspace

Runner = Literal["processes", "containers"]
ATTEMPTS = 3
"""How often a candidate is judged anew because another champion came meanwhile."""


@dataclass(frozen=True)
class Finished:
    """A run that ended."""

    outcome: Outcome
    records: dict[str, StepRecord]
    log: Path
    failure: str = ""
    """Which step failed and why, in one sentence."""


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    configuration: Configuration
    runner: Runner = "processes"
    force: bool = False
    """Train and judge although nothing is new."""
    trigger: str = ""
    """What had the run start, where no person did."""

    @property
    def model(self) -> str:
        """The registered model."""
        return self.configuration.registry.model_name


def retrain(request: Request, root: Path, console: Console) -> Finished:
    """Run the pipeline once in the work folder ``root``.

    Its gate and evaluation are pinned as the model's policy first: on one machine nobody else could.

    Raises:
        RequestError: the work folder cannot be used.
        KeyboardInterrupt: interrupted; nothing is left running, the run is closed as killed.
    """
    force = request.force
    with workspace(root, request.runner) as place:
        policy = policy_of(request.configuration.evaluation, request.configuration.gate)
        for changed in place.lineage.set_policy(request.model, **policy, reason="a run's configuration"):
            say(console, f"policy: {changed}")
        for _ in range(ATTEMPTS):
            finished = _attempt(request, force, place, console)
            place.lineage.checkpoint()
            if finished.outcome != "stale":
                break
            # Its candidate is known now: the next attempt only judges it against the new champion.
            say(console, finished.records["promote"].facts["stale"])
            force = False
        return finished


def _attempt(request: Request, force: bool, place: Workspace, console: Console) -> Finished:
    run = f"retraining-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    # As processes see it: straight to the database, the ledger and all keys.
    context = place.lineage.context(
        run,
        str(place.records),
        place.database,
        openlineage=request.configuration.lineage.openlineage or str(place.events),
        state=str(place.state),
        trigger=request.trigger,
        commit=checkout_commit(),
    )
    say(console, f"{run}  ({place.root})", "bold")
    with Narration(console, place.log(run)), _runner(request, place, context) as told:
        failure = _run(request, force, place, context, told)
    return _finished(read_records(context.records, run), place.log(run), failure)


@contextlib.contextmanager
def _runner(request: Request, place: Workspace, context: RunContext) -> Iterator[RunContext]:
    """The run as its steps are told it, with KFP's local runner set up around it."""
    if request.runner == "processes":
        from pipelines.processes import processes

        with processes(context.id, place.pipeline_root):
            yield context
        return
    from infra.images.build import build_image
    from pipelines.containers import bucket_environment, containers
    from pipelines.server import tracking_server

    home, configuration = place.lineage, request.configuration
    places = [where for _, where in configuration.places()]
    mounts = [Path(path) for path in map(local_path, places) if path]
    store = local_path(configuration.data.store)
    if store:
        Path(store).mkdir(parents=True, exist_ok=True)
    writable = [Path(store)] if store else []
    credentials = bucket_environment([*places, configuration.data.store], os.environ)
    images: dict[Image, str] = {"data": build_image("triptych-data"), "torch": build_image("triptych-torch")}
    with (
        tracking_server(place) as server,
        containers(images, context.id, place.pipeline_root, mounts, writable, credentials=credentials, keys=home.keys),
    ):
        # As in a cluster: the server alone holds the promotion key, moves the champion, and tells witness and channel.
        asking = {"tracking_uri": server, "ledger": server, "witness": "", "channel": ""}
        held = {role: home.uri(role) for role in ("run", "gate")}
        yield context.model_copy(update={**asking, "keys": held, "marks": str(place.state / "ledger")})


def _run(request: Request, force: bool, place: Workspace, context: RunContext, told: RunContext) -> str:
    """Run the pipeline; returns why it failed, or nothing.

    Args:
        context: by which runs are closed here: a server that steps in containers use may be gone by then.
        told: what the steps are told.
    """
    from components.image import IMAGE
    from pipelines.retraining import build_pipeline

    for lost in unclosed(context):
        close(context.model_copy(update={"id": lost}), request.model, killed=True)
    parameters = {"run": told.model_dump(exclude={"id"}), "force": force, **request.configuration.arguments()}
    try:
        build_pipeline(IMAGE)(**parameters)
    except KeyboardInterrupt:
        stop_leftovers(place)
        close(context, request.model, killed=True)
        raise
    except Exception as error:  # reported as the run's failure, whole in its log
        logging.getLogger(__name__).exception("the pipeline failed")
        close(context, request.model)
        return str(error)
    return ""


def _finished(records: dict[str, StepRecord], log: Path, failure: str) -> Finished:
    closing = records.get(CLOSING)
    result: Outcome = closing.facts["outcome"] if closing and not failure else "failed"
    broken = next((record for record in records.values() if record.status == "failed"), None)
    if broken is not None:
        failure = f"step {broken.step} failed: {broken.error}"
    elif result == "failed" and not failure:
        failure = (closing.facts.get("trouble") if closing else "") or "a step ended without leaving a record"
    return Finished(result, records, log, failure)
