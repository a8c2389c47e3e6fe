"""The commands of ``triptych`` that move the champion and look after the ledger.

On a work folder they hold all keys themselves; with ``--server`` they ask a governed MLflow server, which knows who
asks (``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``) and alone holds the promotion key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.options import EXAMPLE, WORK, ConfigOption, WorkOption, configuration_of, refuse

if TYPE_CHECKING:
    from lineage.embedded import Embedded
    from lineage.ledger import Ledger
    from lineage.promotion import Promotions

ServerOption = Annotated[str, typer.Option(help="A governed MLflow server to ask, instead of a work folder.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the ledger.")]
VersionArgument = Annotated[str, typer.Argument(help="Number of the model version.")]

ledger_app = typer.Typer(help="Look after the ledger: export, verify, checkpoint, keys.", no_args_is_help=True)


def promote(
    version: VersionArgument,
    config: ConfigOption = EXAMPLE,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
    override: Annotated[bool, typer.Option(help="Break-glass: without the gate's approval; needs --reason.")] = False,
    reason: ReasonOption = "",
) -> None:
    """Make a version champion, as the gate's verdict on it allows."""
    if override:
        _move("override", version, config, work_dir, server, reason)
        return
    from lineage.promotion import request_promotion
    from lineage.registry import Registry

    name = configuration_of(config).registry.model_name
    with _failures():
        if server:
            request_promotion(Registry(server, name), version)
        else:
            _promotions(config, work_dir).promote(version, _user())
    typer.echo(f"champion of {name}: version {version}")


def rollback(
    version: VersionArgument,
    reason: ReasonOption,
    config: ConfigOption = EXAMPLE,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
) -> None:
    """Make a former champion champion again."""
    _move("rollback", version, config, work_dir, server, reason)


def withdraw(
    version: VersionArgument,
    reason: ReasonOption,
    config: ConfigOption = EXAMPLE,
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
) -> None:
    """Revoke a version for good, for law or consent; a champion is none afterwards."""
    _move("withdraw", version, config, work_dir, server, reason)


def reconcile(config: ConfigOption = EXAMPLE, work_dir: WorkOption = WORK, server: ServerOption = "") -> None:
    """Make the registry agree with the ledger; finish what a crash left half done."""
    with _failures():
        if server:
            from lineage.remote import reconcile as ask

            said = ask(server)
        else:
            said = _promotions(config, work_dir).reconcile()
    for line in said or ["the registry agrees with the ledger"]:
        typer.echo(line)
    if any("cannot be trusted" in line for line in said):
        raise typer.Exit(1)


def _move(
    action: Literal["rollback", "withdraw", "override"],
    version: str,
    config: Path,
    work_dir: Path,
    server: str,
    reason: str,
) -> None:
    if not reason.strip():
        refuse(f"{action} needs a reason: --reason '...'")
    with _failures():
        if server:
            from lineage.remote import move

            typer.echo(move(server, action, configuration_of(config).registry.model_name, version, reason))
            return
        getattr(_promotions(config, work_dir), action)(version, _user(), reason)
    typer.echo(f"{action} of version {version}: done")


def _user() -> str:
    from lineage.embedded import local_user

    return local_user()


def _promotions(config: Path, work_dir: Path) -> Promotions:
    from lineage.registry import Registry
    from pipelines.workspace import Workspace

    place = Workspace(work_dir.resolve())
    home = _home(work_dir)
    return home.promotions(Registry(place.database, configuration_of(config).registry.model_name), "command line")


def _home(work_dir: Path) -> Embedded:
    from pipelines.workspace import Workspace

    place = Workspace(work_dir.resolve())
    if not (place.root / "lineage").is_dir():
        refuse(f"there is no ledger in {work_dir} yet; run: triptych retrain")
    return place.lineage


def _ledger(work_dir: Path, server: str) -> Ledger:
    if not server:
        return _home(work_dir).open("command line")
    from lineage.ledger import Ledger

    return Ledger(server)


@contextmanager
def _failures() -> Iterator[None]:
    """What lineage refuses ends the program with status 1 and the reason."""
    from lineage.digests import LineageError

    try:
        yield
    except LineageError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@ledger_app.command()
def show(work_dir: WorkOption = WORK, server: ServerOption = "", last: int = 20) -> None:
    """The last entries, in words."""
    with _failures():
        for entry in _ledger(work_dir, server).all[-last:]:
            said = "  ".join(f"{name}={str(value)[:24]}" for name, value in entry.body.items() if name != "keys")
            typer.echo(f"{entry.index:6d}  {entry.time}  {entry.kind:12s} {said}")


@ledger_app.command("export")
def export_ledger(
    output: Annotated[Path, typer.Argument(help="The file to write, JSON lines.")],
    work_dir: WorkOption = WORK,
    server: ServerOption = "",
) -> None:
    """Write all entries to a file, and the root's public key beside it."""
    from lineage.ledger import export
    from lineage.signing import write_public

    with _failures():
        ledger = _ledger(work_dir, server)
        output.write_text(export(ledger.all), "utf-8")
        write_public(ledger.state.keys[ledger.all[0].key].key, output.with_suffix(".root.pub"))
    typer.echo(f"wrote {output} ({len(ledger.all)} entries) and {output.with_suffix('.root.pub')}")


@ledger_app.command("import")
def import_ledger(
    source: Annotated[Path, typer.Argument(help="An export, JSON lines.")],
    public: Annotated[Path, typer.Argument(metavar="PUBKEY", help="The root's public key, from a place you trust.")],
    into: Annotated[str, typer.Option(help="URL of an empty database, such as postgresql+psycopg://…")],
) -> None:
    """Write an export into an empty database, once every entry was checked."""
    from lineage.ledger import import_entries, read_export
    from lineage.signing import read_public

    with _failures():
        size = import_entries(into, read_export(source), read_public(public).keyid)
    typer.echo(f"imported {size} entries")


@ledger_app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="EXPORT", help="An export, JSON lines.")],
    public: Annotated[Path, typer.Argument(metavar="PUBKEY", help="The root's public key, from a place you trust.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A witness's checkpoint, or a folder of them.")] = None,
) -> None:
    """Check an export against the root's public key, and against a checkpoint if there is one; needs nothing else."""
    from lineage.ledger import read_export
    from lineage.signing import read_public
    from lineage.witness import verify_entries

    with _failures():
        for line in verify_entries(read_export(source), read_public(public).keyid, checkpoint):
            typer.echo(line)


@ledger_app.command("checkpoint")
def write_checkpoint(work_dir: WorkOption = WORK) -> None:
    """Tell the witness how long the ledger is."""
    with _failures():
        home = _home(work_dir)
        made = home.checkpoint()
    typer.echo(f"checkpoint of {made.size} entries in {home.witness.folder}")


@ledger_app.command()
def rotate(
    role: Annotated[str, typer.Argument(help="run, gate, promotion or witness.")], work_dir: WorkOption = WORK
) -> None:
    """Replace a role's key; the old one signs the entry and is kept with the suffix .old."""
    with _failures():
        typer.echo(f"{role} key is now {_home(work_dir).rotate(role)[:12]}")


@ledger_app.command()
def revoke(
    role: Annotated[str, typer.Argument(help="run, gate, promotion or witness.")],
    since: Annotated[int, typer.Option(help="Index of the first entry that the key must not have signed.")],
    reason: ReasonOption,
    work_dir: WorkOption = WORK,
) -> None:
    """Revoke a role's key from an entry on, and give the role a new one; both signed by the root key."""
    with _failures():
        typer.echo(f"{role} key is now {_home(work_dir).revoke(role, since, reason)[:12]}")
    typer.echo("what rested on the revoked key counts no more; run: triptych reconcile")
