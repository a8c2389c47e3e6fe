"""What commands have in common: their options, and how a bad request ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pipelines.configuration import Configuration

EXAMPLE = Path("examples/avatars/retrain.yaml")
WORK = Path(".triptych")

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration (YAML).")]
WorkOption = Annotated[Path, typer.Option("--work-dir", help="The work folder of local runs.")]


def configuration_of(path: Path, source: str | None = None) -> Configuration:
    """The configuration, with its data source (or ``source`` in its place) looked at; a bad one ends the program."""
    from components.snapshot_data.folder import SnapshotError
    from components.snapshot_data.source import check_source
    from components.validate_data.errors import DataValidationError
    from components.validate_data.suite import check_suite
    from pipelines.configuration import ConfigurationError, read_configuration

    try:
        configuration = read_configuration(path, source)
        check_source(configuration.data)
        check_suite(configuration.validation)
    except (ConfigurationError, SnapshotError, DataValidationError) as error:
        refuse(str(error))
    return configuration


def refuse(message: str) -> NoReturn:
    """End the program: the request is bad."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
