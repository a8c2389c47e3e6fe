"""Commands that move the champion of a model, and that say what its candidates are judged by.

On a work folder they hold all keys themselves; with ``--server`` they ask a governed MLflow server, which knows who
asks (``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``) and alone holds the promotion key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.request import (
    EXAMPLE,
    READER,
    WORK,
    ConfigOption,
    ModelOption,
    ReasonOption,
    ServerOption,
    VersionArgument,
    WorkOption,
    ledger_of,
    model_of,
    workspace_of,
)
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.entries import Action
    from lineage.moves import Mover

OfOption = Annotated[Path | None, typer.Option("--config", help="A configuration that names the model.")]
NOT_SETTLED = ("cannot be trusted", "did not follow")
"""What reconciling says where registry, channel or witness still differ from the ledger."""

policy_app = typer.Typer(help="What a model's candidates are judged by.", no_args_is_help=True)


def promote(
    version: VersionArgument,
    model: ModelOption = "",
    config: OfOption = None,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
    override: Annotated[bool, typer.Option(help="Break-glass: without the gate's approval; needs --reason.")] = False,
    reason: ReasonOption = "",
) -> None:
    """Make a version champion, as the gate's verdict on it allows."""
    _move("override" if override else "promote", version, reason, _mover(model, config, work_dir, server))


def rollback(
    version: VersionArgument,
    reason: ReasonOption,
    model: ModelOption = "",
    config: OfOption = None,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
) -> None:
    """Make a former champion champion again."""
    _move("rollback", version, reason, _mover(model, config, work_dir, server))


def withdraw(
    version: VersionArgument,
    reason: ReasonOption,
    model: ModelOption = "",
    config: OfOption = None,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
) -> None:
    """Revoke a version for good, for law or consent; a champion is none afterwards."""
    _move("withdraw", version, reason, _mover(model, config, work_dir, server))


def reconcile(
    model: ModelOption = "", config: OfOption = None, work_dir: WorkOption = WORK, server: ServerOption = ""
) -> bool:
    """Make registry and channel agree with the ledger, and say that the channel still holds."""
    return settled(_mover(model, config, work_dir, server))


def settled(mover: Mover) -> bool:
    """Reconcile, and say what was done; whether all agrees now."""
    said = mover.reconcile()
    for line in said or ["registry and channel agree with the ledger"]:
        typer.echo(line)
    return not any(trouble in line for line in said for trouble in NOT_SETTLED)


def models(model: ModelOption = "", config: OfOption = None, work_dir: WorkOption = WORK) -> None:
    """List versions, aliases and verdicts."""
    from rich.console import Console

    from lineage.registry import Registry
    from pipelines.report import print_versions

    place = workspace_of(work_dir)
    name = model_of(model, config, place.lineage.open(READER).state)
    print_versions(Console(), Registry(place.database, name))


@policy_app.command()
def show(
    model: ModelOption = "", config: OfOption = None, work_dir: WorkOption = WORK, server: ServerOption = ""
) -> bool:
    """The policy that the ledger pins: settings of gate and evaluation, places by digest."""
    import yaml

    state = ledger_of(work_dir, server).state
    pinned = state.policies.get(model_of(model, config, state))
    if pinned is None:
        typer.echo("none is pinned, so nothing can be promoted; enter one: triptych policy set")
        return False
    typer.echo(f"{pinned.digest} of {pinned.model}, by {pinned.user}: {pinned.reason}")
    sections = {"gate": pinned.gate, "evaluation": pinned.evaluation}
    typer.echo(yaml.safe_dump(sections, sort_keys=False), nl=False)
    return True


@policy_app.command("set")
def set_policy(
    reason: ReasonOption, config: ConfigOption = EXAMPLE, work_dir: WorkOption = WORK, server: ServerOption = ""
) -> None:
    """Have candidates judged by a configuration's gate and evaluation from now on; on a server, for officers."""
    from pipelines.configuration import policy_of, read_sections

    read = read_sections(config, "gate", "evaluation", "registry")
    model, policy = read.registry.model_name, policy_of(read.evaluation, read.gate)
    _check_reason("a policy", reason)
    ledger = ledger_of(work_dir, server)
    if server:
        from lineage.policy import differences
        from lineage.stores import ServerStore

        pinned = ledger.state.policies.get(model)
        ServerStore(server).ask("POST", "/policy", json.dumps({"model": model, "reason": reason, **policy}))
        before = {"gate": pinned.gate, "evaluation": pinned.evaluation} if pinned else {}
        said = list(differences(before, policy))
    else:
        said = workspace_of(work_dir).lineage.set_policy(model, **policy, reason=reason)
    for line in said or [f"this is the policy of {model} already"]:
        typer.echo(line)


def _move(action: Action, version: str, reason: str, mover: Mover) -> None:
    if action != "promote":
        _check_reason(action, reason)
    for line in mover.move(action, version, reason):
        typer.echo(line)


def _check_reason(what: str, reason: str) -> None:
    if not reason.strip():
        raise RequestError(f"{what} needs a reason: --reason '...'")


def _mover(model: str, config: Path | None, work_dir: Path, server: str) -> Mover:
    from lineage.moves import ServerMover

    name = model_of(model, config, ledger_of(work_dir, server).state)
    return ServerMover(server, name) if server else mover_of(name, work_dir)


def mover_of(model: str, work_dir: Path) -> Mover:
    """Moves decided here, by the keys of a work folder."""
    from lineage.registry import Registry

    place = workspace_of(work_dir)
    return place.lineage.mover(Registry(place.database, model), READER, place.artifacts)
