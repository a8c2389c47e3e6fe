"""``triptych audit``: an audit of what a work folder holds, without any server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from lineage.audit import Sources, UnknownError, audit, write_page, write_text
from lineage.database import DatabaseStore
from lineage.digests import LineageError
from lineage.entries import Registered
from lineage.memory import Memory
from lineage.signing import read_public
from pipelines.workspace import Workspace

Format = Literal["text", "json", "html"]
READER = "auditor"
"""Whose high-water mark an audit keeps."""


def audit_command(
    what: str, image: bool, work_dir: Path, config: Path, format: Format, output: Path | None, remote: bool = False
) -> int:
    """Audit ``what`` and write the report: text and JSON to stdout or ``output``, HTML to ``output``.

    Args:
        image: ask about a training image.
        config: names the model, where the ledger knows several.
        output: for HTML by default ``audit.html``.
        remote: fetch evidence and images that do not lie on this machine.

    Returns:
        Exit status: 0 everything holds, 1 something does not or is missing, 2 the evidence knows nothing of it.
    """
    try:
        report = audit(what, open_sources(Workspace(work_dir.resolve()), config, remote), image)
    except UnknownError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except LineageError as error:
        typer.echo(f"does not hold: {error}", err=True)
        return 1
    writers = {"text": write_text, "json": lambda r: r.model_dump_json(indent=2) + "\n", "html": write_page}
    content = writers[format](report)
    target = output or (Path("audit.html") if format == "html" else None)
    if target is None:
        typer.echo(content, nl=False)
    else:
        target.write_text(content, "utf-8")
        typer.echo(f"wrote {target}: {report.found}; {'everything holds' if report.holds else 'NOT everything holds'}")
    return 0 if report.holds else 1


def open_sources(place: Workspace, config: Path, remote: bool = False) -> Sources:
    """The evidence in a work folder, read as it lies there; nothing is created.

    Raises:
        UnknownError: there is no ledger.
        LineageError: the ledger cannot be read.
    """
    home = place.lineage
    if not (home.folder / "ledger.db").is_file():
        raise UnknownError(f"there is no ledger in {home.folder}; run: triptych retrain")
    entries, root = DatabaseStore(home.url).entries(0), home.keys / "root.pub"
    return Sources(
        entries,
        root=read_public(root).keyid if root.is_file() else "",
        records=str(place.records),
        registry=place.database if (place.root / "mlflow.db").is_file() else "",
        model=_model({entry.body.model for entry in entries if isinstance(entry.body, Registered)}, config),
        artifacts=place.artifacts,
        checkpoints=list(home.witness.read()),
        mark=Memory(home.marks, READER),
        remote=remote,
    )


def _model(known: set[str], config: Path) -> str:
    if len(known) == 1:
        return known.pop()
    from pipelines.configuration import ConfigurationError, read_configuration

    try:
        return read_configuration(config).registry.model_name
    except ConfigurationError as error:
        raise UnknownError(f"which model is meant is not clear: {error}") from error
