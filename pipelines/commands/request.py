"""What the commands have in common: their options, how each of them ends, and how they find what is asked about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from infra.docker import ContainerError
from lineage.digests import LineageError, digest_bytes, hex_of
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.ledger import Ledger
    from lineage.rules import State
    from pipelines.configuration import Configuration
    from pipelines.workspace import Workspace

EXAMPLE = Path("examples/avatars/retrain.yaml")
WORK = Path(".triptych")
READER = "command line"
"""Whose high-water marks the commands keep."""

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration (YAML).")]
WorkOption = Annotated[Path, typer.Option("--work-dir", help="The work folder of local runs.")]
ServerOption = Annotated[str, typer.Option(help="A governed MLflow server to ask, instead of a work folder.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="The registered model; left out: the only one that the ledger knows.")
]
ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the ledger.")]
VersionArgument = Annotated[str, typer.Argument(help="Number of the model version.")]


class Commands(TyperGroup):
    """Commands that all end in one way.

    Exit status: 0 done (also when the gate rejected a candidate: the run did its work), 1 failed or does not hold,
    2 the request is bad, 130 interrupted. A command that returns False does not hold.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            held = super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing is left running, run again to go on", err=True)
            raise typer.Exit(130) from None
        except (RequestError, ContainerError, LineageError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1 if isinstance(error, LineageError) else 2) from None
        if held is False:
            raise typer.Exit(1)
        return held


def configuration_of(path: Path, source: str | None = None) -> Configuration:
    """The configuration, with its data source (or ``source`` in its place) and its expectations looked at."""
    from components.snapshot_data.folder import SnapshotError
    from components.snapshot_data.source import check_source
    from components.validate_data.errors import DataValidationError
    from components.validate_data.suite import check_suite
    from pipelines.configuration import read_configuration

    configuration = read_configuration(path, source)
    try:
        check_source(configuration.data)
        check_suite(configuration.validation)
    except (SnapshotError, DataValidationError) as error:
        raise RequestError(str(error)) from error
    return configuration


def workspace_of(work_dir: Path) -> Workspace:
    """A work folder that has a ledger."""
    from pipelines.workspace import Workspace

    place = Workspace(work_dir.resolve())
    if not place.lineage.folder.is_dir():
        raise RequestError(f"there is no ledger in {work_dir} yet; run: triptych retrain")
    return place


def ledger_of(work_dir: Path, server: str) -> Ledger:
    """The ledger of a work folder, or of a governed server, held against what was seen of it before."""
    if not server:
        return workspace_of(work_dir).lineage.open(READER)
    from lineage.ledger import Ledger
    from lineage.memory import Memory

    return Ledger.open(server, memory=Memory(remembered(server), READER))


def remembered(url: str) -> Path:
    """The folder of this user that keeps what was seen at ``url``."""
    from lineage.artifacts import without_credentials

    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "triptych" / hex_of(digest_bytes(without_credentials(url).rstrip("/").encode()))


def model_of(named: str, config: Path | None, state: State) -> str:
    """The model that is meant: named, the configuration's, or the only one that the ledger knows.

    Raises:
        RequestError: neither says which.
    """
    if named:
        return named
    if config:
        from pipelines.configuration import read_sections

        return str(read_sections(config, "registry").registry.model_name)
    known = sorted({*state.versions, *state.policies})
    if len(known) != 1:
        told = ", ".join(known) or "none"
        raise RequestError(f"which model is meant? The ledger knows {told}; say by --model or --config")
    return known[0]
