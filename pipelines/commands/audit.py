"""Commands that look back: an audit, a verdict decided again, a version trained again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lineage.digests import LineageError
from pipelines.commands.request import Subject, VersionArgument, about
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from pipelines.audit import Sources

AUDITOR = "auditor"
"""Whose high-water mark an audit keeps."""


@about("model", "config", "work_dir")
def audit(
    subject: Subject,
    what: Annotated[
        str, typer.Argument(help="A version's number or 'champion', a run, any digest, or a generated picture's file.")
    ],
    image: Annotated[bool, typer.Option("--image", help="WHAT is a training image: its file or digest.")] = False,
    report: Annotated[
        Literal["text", "json", "html"], typer.Option("--format", help="How to write the report.")
    ] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    remote: Annotated[bool, typer.Option(help="Fetch evidence and images that lie elsewhere.")] = False,
) -> bool:
    """Find the way back: what stands behind it, and whether all of that holds."""
    from pipelines.audit import UnknownError, write_page, write_text
    from pipelines.audit import audit as look_back

    try:
        found = look_back(what, sources_of(subject, remote), image)
    except UnknownError as error:
        raise RequestError(str(error)) from error
    writers = {"text": write_text, "json": lambda r: r.model_dump_json(indent=2) + "\n", "html": write_page}
    content = writers[report](found)
    target = output or (Path("audit.html") if report == "html" else None)
    if target is None:
        typer.echo(content, nl=False)
    else:
        target.write_text(content, "utf-8")
        typer.echo(f"wrote {target}: {found.found}; {'everything holds' if found.holds else 'NOT everything holds'}")
    return bool(found.holds)


def sources_of(subject: Subject, remote: bool = False) -> Sources:
    """The evidence in a work folder, read as it lies there; nothing is created.

    Args:
        remote: whether what lies elsewhere is fetched.

    Raises:
        RequestError: there is no ledger.
        LineageError: the ledger cannot be read.
    """
    from lineage.database import DatabaseStore
    from lineage.memory import Memory
    from lineage.signing import read_public
    from pipelines.audit import Sources

    place, home = subject.place, subject.place.lineage
    entries, root = DatabaseStore(home.url).entries(0), home.keys / "root.pub"
    # Not by the ledger's state: whether that holds is the audit's question.
    known = {entry.body.model for entry in entries if entry.body.kind == "registered"}
    named = subject.name if subject.model or subject.config else ""
    return Sources(
        entries,
        root=read_public(root).keyid if root.is_file() else "",
        records=str(place.records),
        registry=place.database if (place.root / "mlflow.db").is_file() else "",
        model=named or (known.pop() if len(known) == 1 else ""),
        artifacts=place.artifacts,
        checkpoints=list(home.witness.read()),
        mark=Memory(home.marks, AUDITOR),
        remote=remote,
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


@about("model", "config", "work_dir")
def reproduce(
    subject: Subject,
    version: VersionArgument,
    keep: Annotated[Path | None, typer.Option(help="Train in this folder and keep it, not in a temporary one.")] = None,
) -> bool:
    """Train a version again from its records and compare the weights' digest."""
    import tempfile

    from rich.console import Console

    from pipelines.reproduce import reproduce as train_again
    from pipelines.reproduce import training_records

    records = training_records(subject.ledger.state, str(subject.place.records), subject.name, version)
    with tempfile.TemporaryDirectory() as folder:
        made = train_again(records, keep or Path(folder), Console())
    for name in made.differs:
        typer.echo(f"not as it was then: {name}")
    typer.echo(f"recorded  {made.expected}\nmade now  {made.found or 'nothing'}")
    typer.echo("reproduced" if made.found == made.expected else "NOT reproduced")
    return made.found == made.expected
