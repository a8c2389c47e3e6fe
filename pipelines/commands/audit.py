"""Commands that look back: an audit, a verdict decided again, a version trained again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lineage.digests import LineageError
from lineage.scores import EVALUATION_FILE
from pipelines.commands.request import EXAMPLE, Subject, about
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
    redraw: Annotated[
        bool, typer.Option("--redraw", help="WHAT is a served picture: draw it again; with --prompt.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="What the picture was asked for; its credentials do not say it.")] = "",
    like: Annotated[
        bool, typer.Option("--like", help="WHAT is a picture without credentials: who drew its like?")
    ] = False,
) -> bool:
    """Say what stands behind a version, run, digest or picture, and check every digest and signature of it."""
    from pipelines.audit import UnknownError, write_page, write_text
    from pipelines.audit import audit as look_back
    from pipelines.commands import picture

    if like:
        lines = picture.alike(what, subject)
        typer.echo("\n".join(lines) or "no picture of the log looks like it")
        return bool(lines)
    signed = None if image else picture.credentials_of(what, subject)
    if redraw:
        if signed is None or not prompt:
            raise RequestError("--redraw needs a picture with content credentials of a server, and --prompt")
        same, told = picture.redraw(what, prompt, signed, subject)
        typer.echo(told)
        return same
    try:
        found = look_back(signed.origin.digest if signed else what, sources_of(subject, remote), image)
    except UnknownError as error:
        raise RequestError(str(error)) from error
    found = picture.about_picture(what, signed, found) if signed else found
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


CALIBRATE = Path("calibrate")


def gate(
    scores: Annotated[
        list[Path],
        typer.Argument(
            help="The scores artifact, or the evidence folder of a model version; or calibrate and several."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="Decide on this configuration, not on the stored verdict's.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Of calibrate: the file to write.")] = None,
) -> bool:
    """Decide again from stored scores; status 0 if the verdict is the stored one, or, without one, promote.

    With calibrate before them, the scores are of retrains by one recipe: write the margins that these would need.
    """
    if scores[0] == CALIBRATE:
        return _calibrate(scores[1:], config or EXAMPLE, output)
    if len(scores) > 1:
        raise RequestError("decide again on one artifact of scores at a time; several are for: triptych gate calibrate")
    return _decide_again(scores[0], config)


def _calibrate(retrains: list[Path], config: Path, output: Path | None) -> bool:
    import yaml

    from components.gate.margins import as_settings, measure_margins
    from components.gate.scores import UnusableScores, read_scores
    from pipelines.configuration import read_sections

    try:
        read = [read_scores(place if (place / EVALUATION_FILE).exists() else place / "scores")[0] for place in retrains]
        found = measure_margins(read, read_sections(config, "gate").gate)
    except (LineageError, UnusableScores) as error:
        raise RequestError(str(error)) from error
    told = [
        f"# {kind} {name}: margin {one.margin:g}; σ {one.of_a_prompt:.2g} of a prompt's difference, "
        f"{one.of_a_retrain:.2g} of a retrain's mean"
        for (kind, name), one in found.items()
    ]
    content = "\n".join([*told, yaml.safe_dump({"gate": as_settings(found)}, sort_keys=False)])
    if output:
        output.write_text(content, "utf-8")
    typer.echo(content, nl=False)
    return True


def _decide_again(scores: Path, config: Path | None) -> bool:
    from pipelines.configuration import read_sections
    from pipelines.rejudge import rejudge

    settings = read_sections(config, "gate").gate if config else None
    try:
        ruling, stored, differs = rejudge(scores, settings)
    except LineageError as error:
        raise RequestError(str(error)) from error
    typer.echo(f"verdict: {ruling.decision}")
    for reason in ruling.reasons:
        typer.echo(f"  {reason}")
    if stored:
        same = f"not the same in: {', '.join(differs)}" if differs else "the same"
        typer.echo(f"stored in {stored}: {same} (its signature: triptych audit)")
    return not differs if stored else ruling.decision == "promote"


@about("model", "config", "work_dir")
def reproduce(
    subject: Subject,
    version: Annotated[str, typer.Argument(help="Number of the model version, or 'champion'.")],
    keep: Annotated[Path | None, typer.Option(help="Train in this folder and keep it, not in a temporary one.")] = None,
) -> bool:
    """Train a version again from its records and compare the weights' digest."""
    import tempfile

    from rich.console import Console

    from pipelines.reproduce import reproduce as train_again
    from pipelines.reproduce import training_records

    records = training_records(subject.ledger.state, str(subject.place.records), subject.name, version)
    with tempfile.TemporaryDirectory() as folder:
        found, differs = train_again(records, keep or Path(folder), Console())
    recorded = records["fine-tune"].outputs["candidate"]
    for name in differs:
        typer.echo(f"not as it was then: {name}")
    typer.echo(f"recorded  {recorded}\nmade now  {found or 'nothing'}")
    typer.echo("reproduced" if found == recorded else "NOT reproduced")
    return found == recorded
