"""The ``triptych`` command line; `pipelines.commands.request.Commands` says how a command ends."""

from __future__ import annotations

import typer

from pipelines.commands.audit import audit, gate, reproduce
from pipelines.commands.champion import models, policy_app, promote, reconcile, rollback, withdraw
from pipelines.commands.doctor import doctor
from pipelines.commands.ledger import channel_app, ledger_app
from pipelines.commands.request import Commands
from pipelines.commands.run import compile_pipeline, prune, retrain, ui, validate
from pipelines.commands.scorers import scorers_app
from pipelines.commands.serve import serve
from pipelines.commands.submit import submit

app = typer.Typer(
    cls=Commands,
    help="Retrain a text-to-image portrait model; let a new one through only when it holds on three panels at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RUNS = (retrain, submit, doctor, serve, validate, models, ui, prune, gate)
CHAMPIONS = (audit, reproduce, promote, rollback, withdraw, reconcile)
for command in RUNS + CHAMPIONS:
    app.command()(command)
app.command("compile")(compile_pipeline)
for name, group in (("policy", policy_app), ("ledger", ledger_app), ("channel", channel_app), ("scorers", scorers_app)):
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point."""
    app()
