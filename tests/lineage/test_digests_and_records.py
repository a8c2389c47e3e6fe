"""Digests name content wherever it lies; a step leaves a record whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from components.close_run.close import close, outcome
from lineage.digests import TREE, LineageError, canonical, code_digest, digest_json, digest_path, hex_of, short
from lineage.policy import by_content
from lineage.records import RUN_VARIABLE, RunContext, read_records, recording
from lineage.statements import VERDICT, Subject, make_statement, read_statement, write_statement
from tests.runs import run_context

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    return run_context(tmp_path, "r1")


def test_a_folder_is_named_by_what_it_holds(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("same")
    assert digest_path(tmp_path / "one") == digest_path(tmp_path / "two")
    (tmp_path / "two" / "inner" / "file").write_text("other")
    assert digest_path(tmp_path / "one") != digest_path(tmp_path / "two")
    with pytest.raises(LineageError, match="nothing to take a digest of"):
        digest_path(tmp_path / "absent")


def test_no_file_has_the_digest_of_a_folder(tmp_path: Path) -> None:
    """Not even one that holds what a folder's digest is taken of."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "a").write_text("content")
    listing = tmp_path / "listing"
    for folder, listed in (("folder", [["a", digest_path(tmp_path / "folder" / "a")]]), ("empty", [])):
        listing.write_bytes(canonical(listed))
        digest = digest_path(tmp_path / folder)
        assert hex_of(digest) == hex_of(digest_path(listing)), "this is what the digest is taken of"
        assert digest.startswith(TREE) and digest != digest_path(listing)


def test_a_statement_says_of_what_its_digests_are(tmp_path: Path) -> None:
    """A reader of the statement can tell a file from a folder, and gets the digest back as it was."""
    file, folder = DIGEST, f"tree-{DIGEST}"
    statement = make_statement(VERDICT, {"file": file, "folder": folder}, {})
    assert [subject.digest for subject in statement.subject] == [{"sha256": "0" * 64}, {"tree-sha256": "0" * 64}]
    assert (statement.subject_digest("file"), statement.subject_digest("folder")) == (file, folder)
    with pytest.raises(LineageError, match="names no subject 'other'"):
        statement.subject_digest("other")
    both = Subject(name="both", digest={"sha256": "0" * 64, "tree-sha256": "1" * 64})
    with pytest.raises(LineageError, match="names no subject 'both' by one digest"):
        statement.model_copy(update={"subject": (both,)}).subject_digest("both")


def test_a_digest_cut_for_reading_still_says_its_kind() -> None:
    assert (short(DIGEST), short(f"tree-{DIGEST}")) == ("sha256:000000000000…", "tree-sha256:000000000000…")


def test_a_folder_with_something_unseen_in_it_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "weights" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LineageError, match="more is neither a file nor a directory"):
        digest_path(tmp_path / "weights")


def test_json_digest_ignores_key_order_and_refuses_nan() -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_json({"steps": 240}) == digest_json({"steps": 240.0}), "KFP makes numbers of integers"
    with pytest.raises(LineageError, match="canonical"):
        digest_json(float("nan"))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(st.characters()), inner)
)


@given(JSON)
@example({"\ue000": 1, "\U00010000": 2})
@example(['\x00\x1f\x7f\u2028\\"/é', 2**53 - 1, -(2**53) + 1, True, None])
@example(2**53)
@example("\ud800")
def test_canonical_json_is_what_rfc_8785_says_however_it_is_written(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(LineageError, match="no canonical JSON"):
            canonical(value)
    else:
        assert canonical(value) == expected


def test_code_digest_covers_every_source_of_an_installed_package() -> None:
    assert code_digest("lineage") != code_digest("lineage", "components")
    with pytest.raises(LineageError, match="not installed"):
        code_digest("no_such_package")


def test_keys_hold_contents_not_places(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    (tmp_path / "b").write_text("weights")
    settings = {"model": str(tmp_path / "a"), "steps": 3, "parts": [str(tmp_path / "a")]}
    moved = {"model": str(tmp_path / "b"), "steps": 3, "parts": [str(tmp_path / "b")]}
    assert by_content(settings) == by_content(moved)
    (tmp_path / "b").write_text("other")
    assert by_content(settings) != by_content(moved)


def test_a_record_is_left_by_success_and_by_failure(run: RunContext) -> None:
    with recording(run, "good", {"x": 1}) as record:
        record.output("thing", DIGEST)
    with pytest.raises(RuntimeError), recording(run, "bad", {}):
        raise RuntimeError("the reason")
    records = read_records(run.records, run.id)
    assert [(r.step, r.status) for r in records.values()] == [("good", "complete"), ("bad", "failed")]
    assert records["good"].outputs == {"thing": DIGEST}
    assert records["bad"].error == "RuntimeError: the reason"


def test_a_run_is_named_by_its_job_and_by_no_parameter(run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    repeated = {**run.model_dump(), "id": "what a schedule would repeat"}
    assert [RunContext.of(repeated, job).id for job in ("job-1", "job-2")] == ["job-1", "job-2"]
    monkeypatch.setenv(RUN_VARIABLE, "named by the runner here")
    assert RunContext.of(repeated, "job-3").id == "named by the runner here"


def test_a_record_says_where_it_ran_and_keeps_no_password(run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_POD", "retraining-x")
    monkeypatch.setenv("TRIPTYCH_SERVICE_ACCOUNT", "gate")
    told = run.model_copy(update={"trigger": "schedule nightly, 2026-11-26T02:00Z"})
    with pytest.raises(RuntimeError), recording(told, "step", {}):
        raise RuntimeError("no answer from postgresql://triptych:secret@db/mlflow")
    record = read_records(run.records, run.id)["step"]
    digest = record.where.pop("image_digest")
    assert digest.startswith("unknown: "), "there is no API server to ask here, and the record says so"
    assert record.where == {"pod": "retraining-x", "service_account": "gate"}
    assert record.trigger == "schedule nightly, 2026-11-26T02:00Z"
    assert record.error and "secret" not in record.error and "db/mlflow" in record.error


def test_a_record_that_cannot_be_written_fails_the_step(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file where the folder should be")
    run = run_context(tmp_path, "r1")
    with pytest.raises(LineageError, match="cannot be written"), recording(run, "step", {}):
        pass


def test_a_damaged_record_is_named(run: RunContext) -> None:
    with recording(run, "good", {}):
        pass
    (Path(run.records) / "r1" / "good.json").write_text("{")
    with pytest.raises(LineageError, match=r"good\.json is not a step record"):
        read_records(run.records, run.id)


@pytest.mark.parametrize(
    ("steps", "failing", "expected"),
    [
        (["snapshot-data", "plan", "nothing-new"], None, "nothing-new"),
        (["snapshot-data", "plan", "promote"], None, "judged"),
        (["snapshot-data", "plan", "validate-data"], "validate-data", "failed"),
        (["snapshot-data", "plan"], None, "failed"),
        ([], None, "failed"),
    ],
)
def test_the_outcome_comes_from_the_records(
    run: RunContext, steps: list[str], failing: str | None, expected: str
) -> None:
    for step in steps:
        try:
            with recording(run, step, {}):
                if step == failing:
                    raise RuntimeError("broken")
        except RuntimeError:
            pass
    assert outcome(read_records(run.records, run.id)) == expected
    assert close(run, "model") == expected
    assert close(run, "model") == expected, "closing again changes nothing"


def test_a_ledger_that_cannot_be_written_fails_the_step(run: RunContext) -> None:
    gone = run.model_copy(update={"ledger": f"sqlite:///{Path(run.records).parent / 'nowhere' / 'ledger.db'}"})
    with pytest.raises(LineageError, match="cannot be used"), recording(gone, "step", {}):
        pass


def test_a_record_is_named_in_the_ledger(run: RunContext) -> None:
    with recording(run, "good", {"x": 1}):
        pass
    record = read_records(run.records, run.id)["good"]
    assert run.open_ledger().state.records == {"r1": {"good": record.digest()}}
    assert close(run, "model") == "failed"
    assert run.open_ledger().state.outcomes == {"r1": "failed"}


def test_a_run_whose_records_were_changed_is_closed_as_failed(run: RunContext) -> None:
    with recording(run, "promote", {}) as record:
        record.facts["alias"] = ""
    path = Path(run.records) / "r1" / "promote.json"
    path.write_text(path.read_text().replace('"alias": ""', '"alias": "champion"'))
    assert close(run, "model") == "failed"
    assert "not the one that the ledger names" in read_records(run.records, run.id)["close-run"].facts["trouble"]


def test_a_statement_survives_the_file_and_refuses_another_type_or_signer(tmp_path: Path, run: RunContext) -> None:
    path = tmp_path / "verdict.dsse.json"
    gate, other = (run.signer(role) for role in ("gate", "run"))
    write_statement(make_statement(VERDICT, {"candidate": DIGEST}, {"decision": "hold"}), path, gate)
    assert read_statement(path, VERDICT, [gate.public_key]).subject_digest("candidate") == DIGEST
    with pytest.raises(LineageError, match="expected urn:other"):
        read_statement(path, "urn:other", [gate.public_key])
    with pytest.raises(LineageError, match="signature does not hold"):
        read_statement(path, VERDICT, [other.public_key])
    path.write_text("{}")
    with pytest.raises(LineageError, match="not a signed envelope"):
        read_statement(path, VERDICT, [gate.public_key])
