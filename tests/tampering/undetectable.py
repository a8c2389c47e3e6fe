"""What no reader can tell, and why; ``docs/threat-model.md`` repeats it word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

UNDETECTABLE = {
    "truncation past the last checkpoint": "Nobody outside the ledger saw what came after it.",
    "history forged after the last checkpoint": "With the ledger's keys the new entries are as good as the old ones.",
    "the newest checkpoints taken away": "What is left is an honest, earlier word of the witness.",
    "a high-water mark set back": "A mark is a reader's own note in a file of its own, and is not signed.",
    "everything set back together": "Ledger, witness, marks and artifacts of one earlier moment agree with each other.",
    "everything deleted": "What is gone says nothing, and a new ledger with a new root begins honestly.",
    "a false verdict by a holder of the gate key": "The ledger knows the gate by its key and by nothing else.",
    "a lie of a compromised step": "A record is what the step says; digests bind it, and do not make it true.",
    "a name that a key holder gives": "Users and reasons are what the holder of the promotion key writes down.",
    "the clock": "Times are the writer's own; only their order within the ledger is looked at.",
    "secrets in memory": "Whoever reads a process's memory, or runs code in it, has its keys.",
    "the text of MLflow's pages": "Descriptions and tags of other names are for reading.",
    "another writing of the same entry": "Signatures cover what an entry says, not how it is written down.",
}
OUTSIDE = {
    "everything deleted",
    "a lie of a compromised step",
    "a name that a key holder gives",
    "the clock",
    "secrets in memory",
}
"""Those that no change of a file can show."""
PROVEN: set[str] = set()
"""Those that a test shows to be so."""

Test = TypeVar("Test", bound=Callable[..., None])


def proves(name: str) -> Callable[[Test], Test]:
    """The test shows that ``name`` is not detected where it happens alone."""
    assert name in UNDETECTABLE
    PROVEN.add(name)
    return lambda test: test
