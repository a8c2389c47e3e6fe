"""Commands that run the pipeline or parts of it, compile it, or show what it left."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.commands.request import EXAMPLE, WORK, ConfigOption, Subject, about, configuration_of


def retrain(
    config: ConfigOption = EXAMPLE,
    runner: Annotated[Literal["processes", "containers"], typer.Option(help="Where the steps run.")] = "processes",
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", help="Work folder; .triptych, in containers .triptych/containers."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Train and judge although nothing is new.")] = False,
    trigger: Annotated[
        str, typer.Option(help="What had this run start, such as a schedule and its slot; goes into the records.")
    ] = "",
) -> bool:
    """Run the pipeline once on this machine."""
    from rich.console import Console

    from pipelines.report import print_outcome
    from pipelines.retrain import Request
    from pipelines.retrain import retrain as run_pipeline

    root = work_dir or (WORK if runner == "processes" else WORK / "containers")
    console = Console(file=sys.stdout)  # this stream, also while the run's output is redirected
    asked = Request(configuration_of(config), runner, force, trigger)
    finished = run_pipeline(asked, root, console)
    print_outcome(console, finished, root, asked.model)
    return finished.outcome != "failed"


def validate(
    source: Annotated[str, typer.Argument(help="Where the images lie: a folder, or a URI (s3://, gs://, hf://).")],
    config: ConfigOption = EXAMPLE,
    out: Annotated[Path, typer.Option(help="The folder for snapshot, facts, quarantine and reports.")] = (
        WORK / "validate"
    ),
) -> bool:
    """Pin a source and hold it against the expectations, and nothing else: 0 good, 1 refused, 2 a bad request."""
    from pipelines.validate import validate_source

    place = source if "://" in source else str(Path(source).resolve())
    return validate_source(configuration_of(config, place), out.resolve())


def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("retraining.yaml"),
    image: Annotated[str, typer.Option(help="The image of every step, best by digest.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="A configuration whose section cluster says what each step needs.")
    ] = None,
    sample_shards: Annotated[
        int, typer.Option(min=1, help="Tasks that draw samples at once; above 1, steps must share the state folder.")
    ] = 1,
) -> None:
    """Write the pipeline's IR YAML, for a Kubeflow cluster."""
    from kfp.compiler import Compiler

    from components.image import IMAGE
    from pipelines.configuration import read_sections
    from pipelines.retraining import build_pipeline

    equip = read_sections(config, "cluster").cluster.equip if config else None
    pipeline = build_pipeline(image or IMAGE, cluster=True, retries=2, sample_shards=sample_shards, equip=equip)
    Compiler().compile(pipeline, str(output))
    typer.echo(f"wrote {output}")


@about("work_dir")
def ui(subject: Subject, port: Annotated[int, typer.Option(help="On the loopback address.")] = 5000) -> None:
    """Start MLflow's pages on the local store."""
    from pipelines.server import pages, server_command, server_environment

    command, told = server_command(subject.place, port), server_environment(subject.place)
    for address in pages(subject.place, port) or [f"http://127.0.0.1:{port}"]:
        typer.echo(f"MLflow on {address}; Ctrl-C ends it")
    os.execve(command[0], command, told)


@about("work_dir")
def prune(
    subject: Subject,
    keep: Annotated[int, typer.Option(min=0, help="So many of the last runs stay as they are.")],
) -> None:
    """Delete logs of old runs and what their steps passed on; records, versions and evidence stay."""
    from rich.filesize import decimal

    from pipelines.workspace import prune as delete_old

    number, size = delete_old(subject.place, keep)
    typer.echo(f"deleted {number} folders and logs, {decimal(size)}")
