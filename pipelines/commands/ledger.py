"""Commands that look after the ledger, and after the channel that tells others what it decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.champion import reconcile
from pipelines.commands.request import READER, WORK, ReasonOption, Subject, about, remembered
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.entries import Entry

ExportArgument = Annotated[Path, typer.Argument(metavar="EXPORT", help="An export, JSON lines.")]
RootArgument = Annotated[Path, typer.Argument(metavar="PUBKEY", help="The root's public key, from a place you trust.")]
RoleArgument = Annotated[str, typer.Argument(help="run, gate, promotion or witness.")]

ledger_app = typer.Typer(help="Look after the ledger: init, export, verify, checkpoint, keys.", no_args_is_help=True)
channel_app = typer.Typer(help="The promotion channel: how servers learn who is champion.", no_args_is_help=True)
channel_app.command("publish")(reconcile)


@ledger_app.command()
def init(
    work_dir: Annotated[Path, typer.Option("--work-dir", help="The work folder that gets keys and ledger.")] = WORK,
) -> None:
    """Make keys and a ledger in a work folder, as a first run does; what is there stays."""
    from pipelines.workspace import Workspace

    home = Workspace(work_dir).lineage
    home.open(READER)
    typer.echo(f"the keys are in {home.keys}; the root's id is {home.root}")


@ledger_app.command()
@about("work_dir", "server")
def show(subject: Subject, last: int = 20) -> None:
    """The last entries, in words."""
    for entry in subject.ledger.entries(max(0, subject.ledger.state.size - last)):
        body = entry.body.model_dump(exclude={"kind", "keys"})
        said = "  ".join(f"{name}={str(value)[:24]}" for name, value in body.items())
        typer.echo(f"{entry.index:6d}  {entry.time}  {entry.body.kind:12s} {said}")


@ledger_app.command("export")
@about("work_dir", "server")
def export_ledger(
    subject: Subject, output: Annotated[Path, typer.Argument(help="The file to write, JSON lines.")]
) -> None:
    """Write all entries to a file, and the root's public key beside it."""
    from lineage.signing import write_public
    from lineage.stores import export

    root, state, entries = output.with_suffix(".root.pub"), subject.ledger.state, subject.ledger.entries()
    output.write_text(export(entries), "utf-8")
    write_public(state.keys[entries[0].key].key, root)
    typer.echo(f"wrote {output} ({len(entries)} entries) and {root}")


@ledger_app.command("import")
def import_ledger(
    source: ExportArgument,
    public: RootArgument,
    into: Annotated[str, typer.Option(help="URL of an empty database, such as postgresql+psycopg://…")],
) -> None:
    """Write an export into an empty database, once every entry was checked."""
    from lineage.database import DatabaseStore
    from lineage.entries import LedgerError
    from lineage.witness import verify_entries

    entries, root = _exported(source, public)
    verify_entries(entries, root, None)
    store = DatabaseStore(into)
    store.create()
    if store.entries(0, 1):
        raise LedgerError(f"{store.name} holds a ledger already; import into an empty database")
    store.write(entries)
    typer.echo(f"imported {len(entries)} entries")


@ledger_app.command()
def verify(
    source: ExportArgument,
    public: RootArgument,
    checkpoint: Annotated[Path | None, typer.Option(help="A witness's checkpoint, or a folder of them.")] = None,
) -> None:
    """Check an export against the root's public key, and against a checkpoint if there is one; needs nothing else."""
    from lineage.witness import verify_entries

    for line in verify_entries(*_exported(source, public), checkpoint):
        typer.echo(line)


def _exported(source: Path, public: Path) -> tuple[list[Entry], str]:
    """The entries of an export, and the id of the root key."""
    from lineage.signing import read_public
    from lineage.stores import read_export

    return read_export(source), str(read_public(public).keyid)


@ledger_app.command("checkpoint")
@about("work_dir")
def write_checkpoint(subject: Subject) -> None:
    """Tell the witness how long the ledger is."""
    home = subject.place.lineage
    typer.echo(f"checkpoint of {home.checkpoint()} entries in {home.witness.folder}")


@ledger_app.command()
@about("work_dir")
def rotate(subject: Subject, role: RoleArgument) -> bool:
    """Replace a role's key; the old one signs the entry and is kept with the suffix .old."""
    typer.echo(f"{role} key is now {subject.place.lineage.rotate(role)[:12]}")  # type: ignore[arg-type]
    return _trust_new_key(subject, role)


@ledger_app.command()
@about("work_dir")
def revoke(
    subject: Subject,
    role: RoleArgument,
    since: Annotated[int, typer.Option(help="Index of the first entry that the key must not have signed.")],
    reason: ReasonOption,
) -> bool:
    """Revoke a role's key from an entry on, and give the role a new one; both signed by the root key."""
    typer.echo(f"{role} key is now {subject.place.lineage.revoke(role, since, reason)[:12]}")  # type: ignore[arg-type]
    typer.echo("what rested on the revoked key counts no more; run: triptych reconcile")
    return _trust_new_key(subject, role)


def _trust_new_key(subject: Subject, role: str) -> bool:
    """Have the channel trust a new key, if it is one of those that sign it, and be signed by it."""
    if role not in ("promotion", "witness"):
        return True
    if not subject.place.lineage.holds_root:
        typer.echo("the channel still trusts the old key; where root.pem is, run: triptych channel init")
        return True
    subject.place.lineage.init_channel()
    return bool(reconcile(work_dir=subject.work_dir))


@channel_app.command("init")
@about("work_dir", "server")
def init_channel(
    subject: Subject,
    place: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix; left out: the work folder's own.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The root of trust, for clients.")] = None,
) -> None:
    """Make a channel, or have it trust the keys that count now; signed by the root key of the work folder."""
    home = subject.place.lineage
    target = output or (Path("channel-root.json") if place else home.channel_root)
    target.write_bytes(home.init_channel(subject.ledger, place))
    typer.echo(f"clients begin with {target}; hand it on by a way you trust")


@channel_app.command("verify")
@about("work_dir")
def verify_channel(
    subject: Subject,
    url: Annotated[str, typer.Argument(help="Where the channel lies; left out: the work folder's own.")] = "",
    root: Annotated[Path | None, typer.Option(help="A root.json of the channel, from a place you trust.")] = None,
) -> None:
    """Read all of a channel as a client would, and say what holds."""
    from lineage.channel.client import verify

    place, trusted = url or str(subject.place.lineage.channel), root or subject.place.lineage.channel_root
    if not trusted.is_file():
        raise RequestError(f"there is no {trusted} to trust the channel with; name one by --root")
    for line in verify(trusted.read_bytes(), place, remembered(place)):
        typer.echo(line)
