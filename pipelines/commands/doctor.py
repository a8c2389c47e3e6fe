"""``triptych doctor``: what is missing in a cluster, all at once, each with its remedy."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    context: Annotated[str, typer.Option(help="Of the kubeconfig; by default the current one.")] = "",
    namespace: Annotated[str, typer.Option(help="Where Triptych is, or shall be.")] = "triptych",
    kfp_namespace: Annotated[str, typer.Option(help="Where KFP itself is.")] = "kubeflow",
    server: Annotated[str, typer.Option(help="The governed server, to ask it for leases of dead runs.")] = "",
) -> bool:
    """Ask a cluster for everything that Triptych needs there; changes nothing. Exit status 1 where a fault is found."""
    from pipelines.doctor.cluster import Cluster, examine

    found = examine(Cluster.of(context, namespace, kfp_namespace, server))
    for number, (what, remedy) in enumerate(found, 1):
        typer.echo(f"{number:3d}. {what}\n     -> {remedy}")
    typer.echo(f"{len(found)} faults" if found else "nothing is missing")
    return not found
