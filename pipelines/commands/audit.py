"""Commands that look back: an audit, a verdict decided again, a version trained again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineage.digests import LineageError
from pipelines.commands.request import (
    READER,
    WORK,
    ModelOption,
    VersionArgument,
    WorkOption,
    configuration_of,
    model_of,
    workspace_of,
)
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.audit import Sources

OfOption = Annotated[Path | None, typer.Option("--config", help="A configuration that names the model.")]
AUDITOR = "auditor"
"""Whose high-water mark an audit keeps."""


class ReportFormat(StrEnum):
    """How an audit is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


def audit(
    what: Annotated[
        str, typer.Argument(help="A version's number or 'champion', a run, any digest, or a generated picture's file.")
    ],
    image: Annotated[bool, typer.Option("--image", help="WHAT is a training image: its file or digest.")] = False,
    model: ModelOption = "",
    config: OfOption = None,
    work_dir: WorkOption = WORK,
    report: Annotated[ReportFormat, typer.Option("--format", help="How to write the report.")] = ReportFormat.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
) -> bool:
    """Find the way back: what stands behind it, and whether all of that holds."""
    from lineage.audit import UnknownError, write_page, write_text
    from lineage.audit import audit as look_back

    try:
        found = look_back(what, sources_of(work_dir, model, config), image)
    except UnknownError as error:
        raise RequestError(str(error)) from error
    writers = {"text": write_text, "json": lambda r: r.model_dump_json(indent=2) + "\n", "html": write_page}
    content = writers[report](found)
    target = output or (Path("audit.html") if report == ReportFormat.HTML else None)
    if target is None:
        typer.echo(content, nl=False)
    else:
        target.write_text(content, "utf-8")
        typer.echo(f"wrote {target}: {found.found}; {'everything holds' if found.holds else 'NOT everything holds'}")
    return bool(found.holds)


def sources_of(work_dir: Path, model: str = "", config: Path | None = None) -> Sources:
    """The evidence in a work folder, read as it lies there; nothing is created.

    Raises:
        RequestError: there is no ledger.
        LineageError: the ledger cannot be read.
    """
    from lineage.audit import Sources
    from lineage.database import DatabaseStore
    from lineage.memory import Memory
    from lineage.registry import Registry
    from lineage.rules import State
    from lineage.signing import read_public

    place = workspace_of(work_dir)
    home, has_registry = place.lineage, (place.root / "mlflow.db").is_file()
    root = home.keys / "root.pub"
    entries = DatabaseStore(home.url).entries(0)
    # Whether they hold is the audit's matter; here they only say which model is meant.
    known = State.model_construct(versions={e.body.model: {} for e in entries if e.body.kind == "registered"})
    return Sources(
        entries,
        root=read_public(root) if root.is_file() else "",
        records=str(place.records),
        registry=Registry(place.database, model_of(model, config, known)) if has_registry else None,
        artifacts=place.artifacts,
        checkpoints=home.witness.read(),
        mark=Memory(home.marks, AUDITOR),
    )


def gate(
    scores: Annotated[Path, typer.Argument(help="The scores artifact, or the evidence folder of a model version.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Decide on this configuration, not on the stored verdict's.")
    ] = None,
) -> bool:
    """Decide again from stored scores; status 0 where the stored verdict, or without one promote, comes out."""
    from pipelines.configuration import read_sections
    from pipelines.rejudge import rejudge

    settings = read_sections(config, "gate").gate if config else None
    try:
        made = rejudge(scores, settings)
    except LineageError as error:
        raise RequestError(str(error)) from error
    typer.echo(f"verdict: {made.ruling.decision}")
    for reason in made.ruling.reasons:
        typer.echo(f"  {reason}")
    if made.stored:
        same = f"not the same in: {', '.join(made.differs)}" if made.differs else "the same"
        typer.echo(f"stored in {made.stored}: {same} (its signature: triptych audit)")
    return not made.differs if made.stored else made.ruling.decision == "promote"


def reproduce(
    version: VersionArgument,
    model: ModelOption = "",
    config: OfOption = None,
    work_dir: WorkOption = WORK,
    keep: Annotated[Path | None, typer.Option(help="Train in this folder and keep it, not in a temporary one.")] = None,
) -> bool:
    """Train a version again from its records and compare the weights' digest."""
    import tempfile

    from rich.console import Console

    from pipelines.reproduce import reproduce as train_again
    from pipelines.reproduce import training_records

    place = workspace_of(work_dir)
    state = place.lineage.open(READER).state
    records = training_records(state, str(place.records), model_of(model, config, state), version)
    with tempfile.TemporaryDirectory() as folder:
        made = train_again(records, keep or Path(folder), Console())
    for name in made.differs:
        typer.echo(f"not as it was then: {name}")
    typer.echo(f"recorded  {made.expected}\nmade now  {made.found or 'nothing'}")
    typer.echo("reproduced" if made.found == made.expected else "NOT reproduced")
    return made.found == made.expected
