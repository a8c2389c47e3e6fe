"""The ``triptych`` command line.

Exit status: 0 done (also when the gate rejected a candidate: the run did its work), 1 the run failed, 2 the request
is bad, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pipelines.configuration import Configuration

EXAMPLE = Path("examples/avatars/retrain.yaml")
WORK = Path(".triptych")

app = typer.Typer(
    help="Retrain a text-to-image portrait model; let a new one through only when it holds on three panels at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class RunnerName(StrEnum):
    """Where the steps run."""

    PROCESSES = "processes"
    CONTAINERS = "containers"


ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration (YAML).")]
WorkOption = Annotated[Path, typer.Option("--work-dir", help="The work folder of local runs.")]


@app.command()
def retrain(
    config: ConfigOption = EXAMPLE,
    runner: Annotated[RunnerName, typer.Option(help="Where the steps run.")] = RunnerName.PROCESSES,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", help="Work folder; .triptych, in containers .triptych/containers."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Train and judge although nothing is new.")] = False,
) -> None:
    """Run the pipeline once on this machine."""
    from rich.console import Console

    from infra.docker import ContainerError
    from lineage.digests import LineageError
    from pipelines.report import print_outcome
    from pipelines.retrain import retrain as run_pipeline
    from pipelines.workspace import WorkspaceError

    root = work_dir or (WORK if runner == "processes" else WORK / "containers")
    configuration = _configuration(config)
    console = Console(file=sys.stdout)  # this stream, also while the run's output is redirected
    try:
        finished = run_pipeline(configuration, runner.value, root, force, console)
    except (WorkspaceError, ContainerError) as error:
        _refuse(str(error))
    except LineageError as error:
        console.print(f"[red]failed[/red]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running, run again to go on")
        raise typer.Exit(130) from None
    print_outcome(console, finished, root, configuration.registry.model_name)
    raise typer.Exit(1 if finished.outcome == "failed" else 0)


@app.command("compile")
def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("retraining.yaml"),
    image: Annotated[str, typer.Option(help="The image of every step, best by digest.")] = "",
) -> None:
    """Write the pipeline's IR YAML, for a Kubeflow cluster."""
    from kfp.compiler import Compiler

    from components.image import IMAGE
    from pipelines.retraining import build_pipeline

    Compiler().compile(build_pipeline(image or IMAGE, retries=2), str(output))
    typer.echo(f"wrote {output}")


@app.command()
def models(config: ConfigOption = EXAMPLE, work_dir: WorkOption = WORK) -> None:
    """List versions, aliases and verdicts."""
    from rich.console import Console

    from lineage.registry import Registry
    from pipelines.report import print_versions
    from pipelines.workspace import Workspace

    configuration = _configuration(config)
    place = Workspace(work_dir.resolve())
    if not (place.root / "mlflow.db").exists():
        _refuse(f"there is no registry in {work_dir} yet; run: triptych retrain")
    print_versions(Console(), Registry(place.database, configuration.registry.model_name))


@app.command()
def ui(work_dir: WorkOption = WORK, port: Annotated[int, typer.Option(help="On the loopback address.")] = 5000) -> None:
    """Start MLflow's pages on the local store."""
    from pipelines.tracking import server_command
    from pipelines.workspace import Workspace

    place = Workspace(work_dir.resolve())
    if not place.root.is_dir():
        _refuse(f"there is no work folder {work_dir}; run: triptych retrain")
    typer.echo(f"MLflow on http://127.0.0.1:{port}; Ctrl-C ends it")
    command = server_command(place, port)
    os.execv(command[0], command)


def _configuration(path: Path) -> Configuration:
    """The configuration, with its data source looked at; a bad one ends the program."""
    from components.snapshot_data.source import SnapshotError, check_source
    from components.validate_data.suite import DataValidationError, check_suite
    from pipelines.configuration import ConfigurationError, read_configuration

    try:
        configuration = read_configuration(path)
        check_source(configuration.data)
        check_suite(configuration.validation)
    except (ConfigurationError, SnapshotError, DataValidationError) as error:
        _refuse(str(error))
    return configuration


def _refuse(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point."""
    app()
