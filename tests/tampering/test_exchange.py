"""What lies between two steps can be exchanged by whoever reaches the files: it must not be signed for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.records import RunContext, StepRecord, check_records, recording, write_record
from tests.lineage.test_ledger import BASE, ONE, TWO


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    made = Embedded(tmp_path)
    made.open()
    return made


def chain(home: Embedded, folder: Path) -> tuple[RunContext, StepRecord]:
    context = home.context("r1", str(folder / "records"), "")
    with recording(context, "fine-tune", {}) as record:
        record.output("candidate", ONE)
    with recording(context, "evaluate", {}) as scored:
        scored.input("candidate", ONE)
        scored.output("scores", BASE)
    return context, record


def test_a_record_edited_before_it_is_used_is_not_signed_for(home: Embedded, tmp_path: Path) -> None:
    context, record = chain(home, tmp_path)
    assert set(check_records(context, {"candidate": ONE})) == {"fine-tune", "evaluate"}
    record.outputs["candidate"] = TWO
    write_record(str(tmp_path / "records"), record)
    with pytest.raises(LineageError, match="record of step fine-tune in run r1 is not the one that the ledger names"):
        check_records(context, {"candidate": TWO})


@pytest.mark.parametrize("name", ["candidate", "scores"])
def test_what_is_exchanged_between_two_steps_is_not_judged(home: Embedded, tmp_path: Path, name: str) -> None:
    context, _ = chain(home, tmp_path)
    with pytest.raises(LineageError, match=f"names {name} .* exchanged"):
        check_records(context, {name: TWO})
