"""Commands that move the champion of a model, and that say what its candidates are judged by.

On a work folder they hold all keys themselves; with ``--server`` they ask a governed MLflow server, which knows who
asks (``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``) and alone holds the promotion key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.request import EXAMPLE, ConfigOption, ReasonOption, Subject, VersionArgument, about
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.entries import Action

OF_MODEL = ("model", "config", "work_dir", "server")

policy_app = typer.Typer(help="What a model's candidates are judged by.", no_args_is_help=True)


@about(*OF_MODEL)
def promote(
    subject: Subject,
    version: VersionArgument,
    override: Annotated[bool, typer.Option(help="Break-glass: without the gate's approval; needs --reason.")] = False,
    reason: ReasonOption = "",
) -> None:
    """Make a version champion, as the gate's verdict on it allows."""
    _move(subject, "override" if override else "promote", version, reason)


@about(*OF_MODEL)
def rollback(subject: Subject, version: VersionArgument, reason: ReasonOption) -> None:
    """Make a former champion champion again."""
    _move(subject, "rollback", version, reason)


@about(*OF_MODEL)
def withdraw(subject: Subject, version: VersionArgument, reason: ReasonOption) -> None:
    """Take a version back for good, for law or consent; a champion is none afterwards."""
    _move(subject, "withdraw", version, reason)


def _move(subject: Subject, action: Action, version: str, reason: str) -> None:
    if action != "promote" and not reason.strip():
        raise RequestError(f"{action} needs a reason: --reason '...'")
    for line in subject.mover(subject.name).move(action, version, reason):
        typer.echo(line)


@about(*OF_MODEL)
def reconcile(subject: Subject) -> bool:
    """Make registry and channel agree with the ledger on a model, or on all, and renew the channel's timestamp."""
    named, state = subject.model or subject.config, subject.ledger.state
    models = [subject.name] if named else sorted({*state.versions, *state.moved})  # moved, and perhaps void since
    followed = [subject.mover(model).reconcile() for model in models]
    for line in [line for one in followed for line in one.said] or ["registry and channel agree with the ledger"]:
        typer.echo(line)
    return all(one.settled for one in followed)


@about("model", "config", "work_dir")
def models(subject: Subject) -> None:
    """List versions, aliases and verdicts."""
    from rich.console import Console

    from lineage.registry import Registry
    from pipelines.report import print_versions

    print_versions(Console(), Registry(subject.place.database, subject.name))


@policy_app.command()
@about(*OF_MODEL)
def show(subject: Subject) -> bool:
    """The policy that the ledger pins: settings of gate and evaluation, places by digest."""
    import yaml

    pinned = subject.ledger.state.policies.get(subject.name)
    if pinned is None:
        typer.echo(f"none is pinned for {subject.name}, so nothing can be promoted; enter one: triptych policy set")
        return False
    typer.echo(f"{pinned.digest} of {pinned.model}, by {pinned.user}: {pinned.reason}")
    typer.echo(yaml.safe_dump({"gate": pinned.gate, "evaluation": pinned.evaluation}, sort_keys=False), nl=False)
    return True


@policy_app.command("set")
@about("work_dir", "server")
def set_policy(subject: Subject, reason: ReasonOption, config: ConfigOption = EXAMPLE) -> None:
    """Have candidates judged by a configuration's gate and evaluation from now on; on a server, for officers."""
    from lineage.policy import changes
    from lineage.stores import ServerStore
    from pipelines.configuration import policy_of, read_sections

    read = read_sections(config, "gate", "evaluation", "registry")
    model, policy = read.registry.model_name, policy_of(read.evaluation, read.gate)
    if not reason.strip():
        raise RequestError("a policy needs a reason: --reason '...'")
    said = changes(subject.ledger.state.policies.get(model), **policy)
    if said and subject.server:
        ServerStore(subject.server).ask("POST", "/policy", json.dumps({"model": model, "reason": reason, **policy}))
    elif said:
        subject.place.lineage.set_policy(model, **policy, reason=reason)
    for line in said or [f"this is the policy of {model} already"]:
        typer.echo(line)
