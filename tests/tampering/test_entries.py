"""Every kind of ledger entry, changed in every way by each adversary."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lineage.entries import AnyBody, Entry, LedgerError, entry_digest
from lineage.rules import replay
from lineage.stores import export, read_export
from lineage.witness import FileWitness, check_against, hear, verify_entries
from tests.audit.world import World
from tests.tampering.world import OPERATIONS, forgers, signed_anew, write_rows

KINDS = tuple(body.model_fields["kind"].default for body in get_args(get_args(AnyBody)[0]))


def places(entries: list[Entry], kind: str) -> int:
    """Where the last entry of a kind is."""
    found = [entry.index for entry in entries if entry.body.kind == kind]
    assert found, f"the world has no {kind} entry: add one, so that its tampering is tested"
    return found[-1]


def culprit(at: int, size: int) -> str:
    """The entry, or one that no longer fits beside it."""
    near = "|".join(str(index) for index in {at - 1, at, at + 1, size - 1} if index >= 0)
    return rf"(entry ({near})\b|entries {at} to|is empty|it was replaced)"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_edited_without_keys(world: World, tmp_path: Path, kind: str, operation: str) -> None:
    entries = world.home.open("tests").entries()
    at = places(entries, kind)
    (tmp_path / "export").write_text(export(OPERATIONS[operation](entries, at)))
    with pytest.raises(LedgerError, match=culprit(at, len(entries))):
        verify_entries(read_export(tmp_path / "export"), world.home.root, world.home.witness.folder)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_edited_by_the_owner_of_the_database(world: World, kind: str, operation: str) -> None:
    """The pipeline, which opens the ledger before everything that it does, refuses it by its mark."""
    entries = world.home.open().entries()
    at = places(entries, kind)
    write_rows(world.home, OPERATIONS[operation](entries, at))
    with pytest.raises(LedgerError, match=culprit(at, len(entries))):
        world.home.open()


@pytest.mark.parametrize("operation", sorted(OPERATIONS.keys() - {"sign otherwise"}))
@pytest.mark.parametrize("kind", KINDS)
def test_history_written_anew_by_a_holder_of_the_ledgers_keys(world: World, kind: str, operation: str) -> None:
    """Chain and signatures may hold then; the witness, the reader's mark and the audit tell."""
    entries = world.home.open("tests").entries()
    at = places(entries, kind)
    forged = signed_anew(OPERATIONS[operation](entries, at), max(at - 1, 0), forgers(world.home))
    witness, readable = FileWitness(world.home.witness.folder), r"entry \d+|entries \d+ to|it was replaced"
    with pytest.raises(LedgerError, match=f"{readable}|export is empty"):
        verify_entries(forged, world.home.root, witness.folder)
    write_rows(world.home, forged)
    with pytest.raises(LedgerError, match=f"{readable}|is empty"):
        world.home.open("tests")


def test_a_history_that_is_forged_well_holds_but_for_the_witness(world: World) -> None:
    """So that the cases above do not pass for a lesser reason."""
    entries = world.home.open("tests").entries()
    at = places(entries, "recorded")
    forged = signed_anew(OPERATIONS["flip"](entries, at), at, forgers(world.home))
    state = replay(forged)
    seen = hear(world.home.witness, state).latest
    assert seen
    with pytest.raises(LedgerError, match="rewritten or forked"):
        check_against(state, lambda index: entry_digest(forged[index]), seen, "the witness")
