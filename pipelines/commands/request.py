"""What the commands have in common: how each of them ends, and how it finds the ledger and model that it is about."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from infra.images.build import ContainerError
from lineage.digests import LineageError, digest_bytes, hex_of
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from lineage.ledger import Ledger
    from lineage.moves import Mover
    from pipelines.configuration import Configuration
    from pipelines.workspace import Workspace

EXAMPLE = Path("examples/avatars/retrain.yaml")
WORK = Path(".triptych")
READER = "command line"
"""Whose high-water marks the commands keep."""

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration (YAML).")]
ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the ledger.")]
VersionArgument = Annotated[str, typer.Argument(help="Number of the model version.")]
OPTIONS = {
    "work_dir": Annotated[Path, typer.Option("--work-dir", help="The work folder of local runs.")],
    "server": Annotated[str, typer.Option(help="A governed MLflow server to ask, instead of a work folder.")],
    "model": Annotated[str, typer.Option(help="The registered model; by default the only one that the ledger knows.")],
    "config": Annotated[Path | None, typer.Option(help="A configuration that names the model.")],
}
"""The options that make a `Subject`."""


class Commands(TyperGroup):
    """Commands that all end in one way.

    Exit status: 0 done (also when the gate rejected a candidate: the run did its work), 1 failed or does not hold,
    2 the request is bad, 130 interrupted. A command that returns False does not hold. ``submit`` has more of them.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            held = super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing is left running, run again to go on", err=True)
            raise typer.Exit(130) from None
        except (RequestError, ContainerError, LineageError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1 if isinstance(error, LineageError) else 2) from None
        if held is False:
            raise typer.Exit(1)
        return held


@dataclass(frozen=True)
class Subject:
    """The ledger that a command is about, in a work folder or behind a server, and a model that it knows."""

    work_dir: Path = WORK
    server: str = ""
    model: str = ""
    config: Path | None = None

    @functools.cached_property
    def place(self) -> Workspace:
        """The work folder, which has a ledger."""
        from pipelines.workspace import Workspace

        place = Workspace(self.work_dir)
        if not place.lineage.folder.is_dir():
            raise RequestError(f"there is no ledger in {self.work_dir} yet; run: triptych retrain")
        return place

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The ledger, held against what was seen of it before."""
        if not self.server:
            return self.place.lineage.open(READER)
        from lineage.ledger import Ledger
        from lineage.memory import Memory

        return Ledger.open(self.server, memory=Memory(remembered(self.server), READER))

    @functools.cached_property
    def name(self) -> str:
        """The model that is meant: named, the configuration's, or the only one that the ledger knows."""
        if self.config and not self.model:
            from pipelines.configuration import read_sections

            return str(read_sections(self.config, "registry").registry.model_name)
        known = [self.model] if self.model else sorted({*self.ledger.state.versions, *self.ledger.state.policies})
        if len(known) != 1:
            told = ", ".join(known) or "none"
            raise RequestError(f"which model is meant? The ledger knows {told}; say by --model or --config")
        return known[0]

    def mover(self, model: str) -> Mover:
        """Moves of a model: decided here with the work folder's keys, or by the server."""
        from lineage.moves import ServerMover
        from lineage.registry import Registry

        self.ledger.refresh()
        if self.server:
            return ServerMover(self.server, model)
        return self.place.lineage.mover(Registry(self.place.database, model), READER, self.place.artifacts)


def about(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command, whose first parameter is a `Subject`, the options called ``names`` to make it from."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            return command(Subject(**{name: given.pop(name) for name in names if name in given}), **given)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(n, kind, default=getattr(Subject, n), annotation=OPTIONS[n]) for n in names]
        parameters = [*(one.replace(kind=kind) for one in own), *added]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorate


def configuration_of(path: Path, *changes: Any) -> Configuration:
    """The configuration, changed as `read_configuration` says, with its data source and its expectations looked at."""
    from components.snapshot_data.source import open_source
    from components.validate_data.suite import read_suite
    from pipelines.configuration import read_configuration

    configuration = read_configuration(path, *changes)
    try:
        open_source(configuration.data)
        read_suite(Path(configuration.validation.suite))
    except LineageError as error:
        raise RequestError(str(error)) from error
    return configuration


def remembered(url: str) -> Path:
    """The folder of this user that keeps what was seen at ``url``."""
    from lineage.places import without_credentials

    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "triptych" / hex_of(digest_bytes(without_credentials(url).rstrip("/").encode()))
