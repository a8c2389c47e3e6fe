"""What an audit may look into, and the claims that it finds there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lineage.artifacts import GoneError, UnreachableError
from lineage.audit.report import Part, Standing
from lineage.digests import LineageError
from lineage.entries import Entry, Registered
from lineage.memory import Memory
from lineage.witness import UnprovenError


@dataclass(frozen=True)
class Sources:
    """Where the evidence is. Whatever is left out is reported as missing, or as not proven."""

    entries: Sequence[Entry]
    """The ledger, or an export of it; not yet checked."""
    root: str = ""
    """Id of the root key that must have opened it."""
    records: str = ""
    """Where the records are: a folder, or a URI that MLflow reads."""
    registry: str = ""
    """Tracking URI of the MLflow server or store."""
    model: str = ""
    """The model that a bare number means."""
    artifacts: Path | None = None
    """Where ``mlflow-artifacts:`` places lie on this machine, so that no server has to be asked."""
    checkpoints: Sequence[tuple[str, bytes]] = ()
    """Name and content of the signed checkpoints that a witness has."""
    mark: Memory | None = None
    remote: bool = False
    """Whether evidence and images that do not lie on this machine are fetched."""


class Claim(NamedTuple):
    """``by`` says that ``subject`` has ``value``, mostly a digest."""

    subject: str
    value: str
    by: str
    part: Part
    kind: str = ""
    """What an answer about ``value`` calls it: weights, record, evidence, ...; empty: nobody asks about it."""
    how: str = ""
    """What the version or run below has to do with it."""
    version: Registered | None = None
    run: str = ""


def judge(error: Exception) -> tuple[Standing, str]:
    """What it shows about evidence that reading it ended so."""
    if isinstance(error, GoneError | UnreachableError):
        return "missing", str(error)
    if isinstance(error, LineageError):
        return "not proven" if isinstance(error, UnprovenError) else "does not hold", str(error)
    # Whatever hostile evidence leads the library that reads it to, MemoryError and RecursionError among it.
    return "does not hold", f"it cannot be read: {type(error).__name__}: {error}"[:1000]
