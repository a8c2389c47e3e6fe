"""Commands about scorers: whether they see what they are for."""

from __future__ import annotations

from typing import Annotated

import typer

from lineage.digests import LineageError
from pipelines.commands.request import EXAMPLE, ConfigOption
from pipelines.errors import RequestError

scorers_app = typer.Typer(help="Look at scorers before they judge.", no_args_is_help=True)


@scorers_app.command()
def accept(
    config: ConfigOption = EXAMPLE,
    count: Annotated[int, typer.Option(min=10, help="Held-out pictures to damage.")] = 100,
) -> bool:
    """Damage held-out pictures and see who notices; status 1 where a scorer notices nothing."""
    from components.evaluate.acceptance import accept as look
    from components.evaluate.evaluation_set import open_rgb, read_evaluation_set
    from components.evaluate.scoring import FeatureScorer, load_scorers
    from pipelines.configuration import read_sections

    settings = read_sections(config, "evaluation").evaluation
    try:
        heldout = read_evaluation_set(settings.evaluation_set).heldout()[:count]
        pictures, scorers = [open_rgb(path) for path, _ in heldout], load_scorers(settings.scorers)
    except LineageError as error:
        raise RequestError(str(error)) from error
    if len(heldout) < 2:
        raise RequestError(f"{settings.evaluation_set} has no pictures with captions in heldout/ to damage")
    blind = []
    for scorer in scorers:
        if isinstance(scorer, FeatureScorer):
            typer.echo(f"{scorer.name}: compares sets; not looked at")
            continue
        found = look(scorer, pictures, [prompt for _, prompt in heldout])  # type: ignore[arg-type]
        typer.echo(f"{found.scorer} ({scorer.axis}): clean above damaged, of {len(pictures)} pictures")
        for damage, shares in found.seen.items():
            typer.echo(f"  {damage:18}" + " ".join(f"{share:5.2f}" for share in shares))
        blind += [found.scorer] if found.blind else []
    for name in blind:
        typer.echo(f"{name} sees none of this: do not trust it")
    return not blind
