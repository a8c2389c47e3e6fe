"""The ``triptych`` command line.

Exit status: 0 done (also when the gate rejected a candidate: the run did its work), 1 the run failed, 2 the request
is bad, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.governance import ledger_app, promote, reconcile, rollback, withdraw
from pipelines.options import EXAMPLE, WORK, ConfigOption, WorkOption, configuration_of, refuse

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
    configuration = configuration_of(config)
    console = Console(file=sys.stdout)  # this stream, also while the run's output is redirected
    try:
        finished = run_pipeline(configuration, runner.value, root, force, console)
    except (WorkspaceError, ContainerError) as error:
        refuse(str(error))
    except LineageError as error:
        console.print(f"[red]failed[/red]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running, run again to go on")
        raise typer.Exit(130) from None
    print_outcome(console, finished, root, configuration.registry.model_name)
    raise typer.Exit(1 if finished.outcome == "failed" else 0)


@app.command()
def validate(
    source: Annotated[str, typer.Argument(help="Where the images lie: a folder, or a URI (s3://, gs://, hf://).")],
    config: ConfigOption = EXAMPLE,
    out: Annotated[Path, typer.Option(help="The folder for snapshot, facts, quarantine and reports.")] = (
        WORK / "validate"
    ),
) -> None:
    """Pin a source and hold it against the expectations, and nothing else: 0 good, 1 refused, 2 a bad request."""
    from pipelines.validate import validate_source

    place = source if "://" in source else str(Path(source).resolve())
    raise typer.Exit(validate_source(configuration_of(config, place), out.resolve()))


@app.command("compile")
def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("retraining.yaml"),
    image: Annotated[str, typer.Option(help="The image of every step, best by digest.")] = "",
    sample_shards: Annotated[
        int, typer.Option(min=1, help="Tasks that draw samples at once; above 1, steps must share the state folder.")
    ] = 1,
) -> None:
    """Write the pipeline's IR YAML, for a Kubeflow cluster."""
    from kfp.compiler import Compiler

    from components.image import IMAGE
    from pipelines.retraining import build_pipeline

    Compiler().compile(build_pipeline(image or IMAGE, retries=2, sample_shards=sample_shards), str(output))
    typer.echo(f"wrote {output}")


@app.command()
def models(config: ConfigOption = EXAMPLE, work_dir: WorkOption = WORK) -> None:
    """List versions, aliases and verdicts."""
    from rich.console import Console

    from lineage.registry import Registry
    from pipelines.report import print_versions
    from pipelines.workspace import Workspace

    configuration = configuration_of(config)
    place = Workspace(work_dir.resolve())
    if not (place.root / "mlflow.db").exists():
        refuse(f"there is no registry in {work_dir} yet; run: triptych retrain")
    print_versions(Console(), Registry(place.database, configuration.registry.model_name))


@app.command()
def ui(work_dir: WorkOption = WORK, port: Annotated[int, typer.Option(help="On the loopback address.")] = 5000) -> None:
    """Start MLflow's pages on the local store."""
    from pipelines.tracking import server_command, server_environment
    from pipelines.workspace import Workspace

    place = Workspace(work_dir.resolve())
    if not place.root.is_dir():
        refuse(f"there is no work folder {work_dir}; run: triptych retrain")
    typer.echo(f"MLflow on http://127.0.0.1:{port}; Ctrl-C ends it")
    command = server_command(place, port)
    os.execve(command[0], command, server_environment(place))


@app.command()
def gate(
    scores: Annotated[Path, typer.Argument(help="The scores artifact, or the evidence folder of a model version.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Decide on this configuration, not on the stored verdict's.")
    ] = None,
) -> None:
    """Decide again from stored scores; status 0 where the stored verdict, or without one promote, comes out."""
    from components.gate.settings import GateSettings
    from lineage.digests import LineageError
    from pipelines.rejudge import rejudge

    settings: GateSettings | None = configuration_of(config).gate if config else None
    try:
        made = rejudge(scores, settings)
    except LineageError as error:
        refuse(str(error))
    typer.echo(f"verdict: {made.ruling.decision}")
    for reason in made.ruling.reasons:
        typer.echo(f"  {reason}")
    if made.stored:
        same = f"not the same in: {', '.join(made.differs)}" if made.differs else "the same"
        typer.echo(f"stored in {made.stored}: {same} (its signature: triptych audit)")
    agrees = not made.differs if made.stored else made.ruling.decision == "promote"
    raise typer.Exit(0 if agrees else 1)


class ReportFormat(StrEnum):
    """How an audit is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


@app.command()
def audit(
    what: Annotated[
        str, typer.Argument(help="A version's number or 'champion', a run, any digest, or a generated picture's file.")
    ],
    image: Annotated[bool, typer.Option("--image", help="WHAT is a training image: its file or digest.")] = False,
    config: ConfigOption = EXAMPLE,
    work_dir: WorkOption = WORK,
    report: Annotated[ReportFormat, typer.Option("--format", help="How to write the report.")] = ReportFormat.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Fetch what does not lie on this machine.")] = False,
) -> None:
    """Find the way back: what stands behind it, and whether all of that holds."""
    from pipelines.audit_cli import audit_command

    raise typer.Exit(audit_command(what, image, work_dir, config, report.value, output, remote))


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="Number of the model version.")],
    config: ConfigOption = EXAMPLE,
    work_dir: WorkOption = WORK,
    keep: Annotated[Path | None, typer.Option(help="Train in this folder and keep it, not in a temporary one.")] = None,
) -> None:
    """Train a version again from its records and compare the weights' digest."""
    import tempfile

    from rich.console import Console

    from lineage.digests import LineageError
    from pipelines.reproduce import reproduce as train_again
    from pipelines.reproduce import training_records
    from pipelines.workspace import Workspace

    place, model = Workspace(work_dir.resolve()), configuration_of(config).registry.model_name
    if not (place.root / "lineage").is_dir():
        refuse(f"there is no ledger in {work_dir} yet; run: triptych retrain")
    with tempfile.TemporaryDirectory() as folder:
        try:
            records = training_records(place.lineage.open("audit").state, str(place.records), model, version)
            made = train_again(records, keep or Path(folder), Console(file=sys.stdout))
        except (LineageError, RuntimeError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
    for name in made.differs:
        typer.echo(f"not as it was then: {name}")
    typer.echo(f"recorded  {made.expected}\nmade now  {made.found or 'nothing'}")
    typer.echo("reproduced" if made.found == made.expected else "NOT reproduced")
    raise typer.Exit(0 if made.found == made.expected else 1)


for command in (promote, rollback, withdraw, reconcile):
    app.command()(command)
app.add_typer(ledger_app, name="ledger")


def main() -> None:
    """Entry point."""
    app()
