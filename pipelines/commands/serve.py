"""`triptych serve`: draw with the champion, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.request import Subject, about
from pipelines.errors import RequestError

SERVING = "serving"
"""In the work folder: what the server saw of the channel, fetched models, the content key, the log of pictures."""


@about("work_dir", "model")
def serve(
    subject: Subject,
    channel: Annotated[str, typer.Option(help="The promotion channel; left out: the work folder's own.")] = "",
    root: Annotated[Path | None, typer.Option(help="A root.json of the channel, from a place you trust.")] = None,
    version: Annotated[str, typer.Option(help="Draw with this version only, whoever is champion.")] = "",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
) -> None:
    """Serve the champion over HTTP: OpenAI's images API, and a page.

    More settings are environment variables, TRIPTYCH_SERVE_…: docs/serving.md lists them.
    """
    from lineage.places import without_credentials
    from serving.run import serve as run
    from serving.settings import Settings

    given: dict[str, Any] = {"host": host, "port": port}
    given |= {"model": subject.model} if subject.model else {}
    given |= {"version": version, "mode": "pinned"} if version else {}
    settings = Settings.read(**given | _places(subject, channel, root))
    where = without_credentials(settings.channel)
    typer.echo(f"drawing with the champion of {where} on http://{host}:{port}; Ctrl-C ends it")
    run(settings)


def _places(subject: Subject, channel: str, root: Path | None) -> dict[str, Any]:
    """Where channel, root of trust and state are, as far as options say it."""
    import os

    if channel and not root:
        raise RequestError("--channel goes with --root, a root.json from whoever keeps the ledger's root key")
    told = {"channel": channel, "root": root} if channel else {}
    if channel or "TRIPTYCH_SERVE_CHANNEL" in os.environ:
        return told if "TRIPTYCH_SERVE_STATE" in os.environ else {**told, "state": subject.work_dir / SERVING}
    home, own = subject.place.lineage, subject.place.root / SERVING
    home.open()
    if not home.channel_root.exists():
        raise RequestError(f"there is no {home.channel_root} yet; promote a version, or run: triptych channel init")
    keys = tuple(sorted(home.keys.glob("run*.pub*")))
    kept = {"state": own, "artifacts": str(subject.place.artifacts), "model_keys": keys}
    return {"channel": str(home.channel), "root": home.channel_root, "picture_log": own / "pictures.jsonl", **kept}
