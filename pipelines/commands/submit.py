"""``triptych submit``: have a Kubeflow cluster run the pipeline, once."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lineage.digests import LineageError
from pipelines.commands.request import ConfigOption, configuration_of
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from pipelines.submission import Ending, Kfp

STATUS: dict[Ending, int] = {
    "promoted": 0,
    "failed": 1,
    "nothing-new": 10,
    "held": 11,
    "rejected": 12,
    "stale": 13,
    "busy": 14,
}
"""What a run came to -> exit status; 2 is a bad request, 130 an interrupt. Without ``--wait``, submitted is 0."""
TRIGGERS = ("new-data", "drift", "by-hand", "schedule")
JOB, CRON_JOB = "TRIPTYCH_JOB", "TRIPTYCH_CRONJOB"
"""Environment variables with the names of the Job whose pod this is, and of the CronJob that makes them."""


def submit(
    config: ConfigOption,
    if_new: Annotated[bool, typer.Option(help="First pin the data and ask the plan; submit only what is new.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the run to its verdict; Ctrl-C leaves it running.")] = False,
    follow: Annotated[str, typer.Option(metavar="RUN", help="Submit nothing; wait for this run.")] = "",
    force: Annotated[bool, typer.Option(help="Train and judge although nothing is new.")] = False,
    trigger: Annotated[
        str, typer.Option(help="What has it start: new-data, drift, by-hand or schedule, with details after a colon.")
    ] = "",
    accept: Annotated[
        list[str], typer.Option(help="End with status 0 also for this: nothing-new, held, rejected, stale, busy.")
    ] = [],  # noqa: B006
    token_file: Annotated[Path | None, typer.Option(help="File with the token for KFP; read anew each time.")] = None,
    context: Annotated[
        str, typer.Option(help="Of the kubeconfig: take the root key's id and the images from that cluster.")
    ] = "",
    kfp: Annotated[str, typer.Option(metavar="URL", help="KFP as this machine reaches it.")] = "",
    server: Annotated[str, typer.Option(metavar="URL", help="The governed server as this machine reaches it.")] = "",
) -> None:
    """Have the cluster of the configuration run the pipeline.

    Exit status: 0 promoted (or submitted), 1 failed, 2 bad request, or something does not answer, 10 nothing new,
    11 held, 12 rejected, 13 stale (another champion came meanwhile), 14 busy (another run has the model), 130
    interrupted.
    """
    from pipelines.configuration import MODELS, raw_section, read_configuration
    from pipelines.places import HUB
    from pipelines.submission import Kfp, installed, local_context, news

    if unknown := [one for one in accept if one not in STATUS]:
        raise RequestError(f"--accept {unknown[0]} is none of {', '.join(STATUS)}")
    if if_new and force:
        raise RequestError("--force trains although nothing is new, --if-new does not; give one of them")
    cause, training = trigger_of(trigger), raw_section(config, "training")
    if hub := [key for key in MODELS if str(training.get(key)).startswith(HUB)]:
        raise RequestError(
            f"training.{hub[0]} lies on the Hub, where steps do not look: put it on the volume that they share"
        )
    known = (installed(context, config) if context else {}) | ({"endpoint": kfp} if kfp else {})
    configuration = (
        configuration_of(config, None, known) if if_new else read_configuration(config, None, known, here=False)
    )
    if configuration.cluster is None:
        raise RequestError(f"{config} has no section cluster; docs/operate.md shows one")
    client, run = Kfp(configuration.cluster, token_file), follow
    if if_new and not run:
        try:
            found, reason = news(configuration, local_context(configuration.cluster, cause))
        except LineageError as error:
            raise RequestError(f"nothing was submitted: {error}") from error
        typer.echo(reason)
        if isinstance(found, str):
            _end(found, accept)
        configuration = found
    if not run:
        run = client.start(configuration, f"retraining {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {cause}", cause, force)
    typer.echo(f"run {run}: {client.page(run)}")
    if wait or follow:
        _end(_followed(client, run, config, server), accept)


def _followed(kfp: Kfp, run: str, config: Path, server: str) -> Ending:
    """Wait for a run; says what it came to."""
    from pipelines.submission import ending

    try:
        state = kfp.wait(run)
        came_to, why = ending(kfp.settings, run, server)
    except KeyboardInterrupt:
        typer.echo(f"\nthe run goes on; follow it with: triptych submit --config {config} --follow {run}", err=True)
        raise typer.Exit(130) from None
    except (RequestError, LineageError) as error:
        raise RequestError(f"{error}. The run may go on; follow it with --follow {run}") from error
    if came_to != "failed" and state != "SUCCEEDED":
        typer.echo(f"KFP calls the run {state}; the ledger decides")
    typer.echo(": ".join(part for part in (came_to, why) if part))
    return came_to


def _end(came_to: Ending, accept: list[str]) -> NoReturn:
    raise typer.Exit(0 if came_to in accept else STATUS[came_to])


def trigger_of(said: str) -> str:
    """What has this run start, for its records: as said, else by the Job that this process belongs to.

    A CronJob's Jobs end in the minute since 1970 for which they were due. A Job made from it has another name, which
    says why: ``drift-…``, ``new-data-…``; else it was made by hand.

    Raises:
        RequestError: there is no such trigger.
    """
    kind, _, detail = said.partition(":")
    if said and kind not in TRIGGERS:
        raise RequestError(f"--trigger {kind} is none of {', '.join(TRIGGERS)}")
    job, cron = os.environ.get(JOB, ""), os.environ.get(CRON_JOB, "")
    if said or not job:
        return f"{kind or 'by-hand'} {detail.strip()}".strip()
    slot = re.fullmatch(re.escape(cron) + r"-(\d{7,9})", job) if cron else None
    if slot is None:
        return f"{next((one for one in TRIGGERS if job.startswith(f'{one}-')), 'by-hand')} job {job}"
    return f"schedule {cron} {datetime.fromtimestamp(int(slot[1]) * 60, UTC):%Y-%m-%dT%H:%MZ}"
