"""The form of an entry: what is signed, what the next one names, and what is said of a line that is none."""

from __future__ import annotations

import hashlib
import json

import pytest

from lineage.entries import PAYLOAD_TYPE, LedgerError, entry_digest, read_entry

RECORD = f"sha256:{'0' * 64}"
BODY = {"kind": "recorded", "run": "run-1", "step": "gate", "status": "complete", "record": RECORD}
FIELDS = {"ledger": "ours", "index": 7, "previous": RECORD, "time": "2026-11-26T10:00:00.000+00:00", "key": "k"}
LINE = json.dumps({**FIELDS, "body": BODY, "signature": "30"})


def test_the_signature_covers_all_else_as_canonical_json_in_a_dsse_envelope() -> None:
    entry = read_entry(LINE)
    said = json.dumps({**FIELDS, "body": entry.body.model_dump()}, sort_keys=True, separators=(",", ":"))
    expected = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(said)} {said}".encode()
    assert entry.signed_bytes() == expected
    digest = "sha256:" + hashlib.sha256(expected + b"\n30").hexdigest()
    assert entry_digest(entry) == entry_digest(entry, expected) == digest
    assert entry_digest(entry.model_copy(update={"signature": "31"})) != digest
    assert entry.name == "ledger entry 7 (recorded)"


def test_an_entry_with_a_number_that_canonical_json_has_not_was_changed() -> None:
    with pytest.raises(LedgerError, match=r"ledger entry 9007199254740993 \(recorded\) was changed: "):
        read_entry(LINE.replace('"index": 7', f'"index": {2**53 + 1}')).signed_bytes()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nothing", "Invalid JSON: expected ident at line 1 column 2"),
        (LINE.replace("recorded", "erased"), "Input tag 'erased' .*; a newer Triptych may know it$"),
        (
            LINE.replace('"index": 7', '"index": "x"'),
            "should be a valid integer, .*$",
        ),
        (LINE.replace('"ledger"', '"ledgers"'), "Field required$"),
    ],
)
def test_a_line_that_is_no_entry_is_named_with_its_first_fault(line: str, reason: str) -> None:
    with pytest.raises(LedgerError, match=f"this is not a ledger entry: .*{reason}") as caught:
        read_entry(line)
    assert repr(line[:80]) in str(caught.value)
