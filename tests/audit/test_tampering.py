"""Whatever is changed, added or taken away, the audit names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lineage.embedded import Embedded
from lineage.entries import Entry
from lineage.memory import Memory
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, read_statement, write_statement
from pipelines.audit import Report, checks, write_text
from pipelines.audit.data import check_pictures, data_of
from pipelines.audit.examination import Examination
from pipelines.audit.report import Standing
from tests.audit.world import World, changed, lying


def names(report: Report, standing: Standing, subject: str) -> str:
    """The reason of the finding that names ``subject``; fails where there is none, or where the report holds."""
    assert not report.holds
    found = [f for f in report.findings if f.standing == standing and subject in f.subject]
    assert found, write_text(report)[-4000:]
    assert f"{standing}" in write_text(report)
    return found[0].reason


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


EVIDENCE = [
    ("verdict/verdict.dsse.json", "evidence/verdict/verdict.dsse.json"),
    ("verdict/pareto.png", "evidence/verdict of"),
    ("scores/scores.parquet", "evidence/scores/scores.parquet"),
    ("scores/evaluation.json", "evidence/scores of"),
    ("scores/grid.png", "evidence/scores of"),
    ("scores/samples/candidate/p0-7.png", "evidence/scores of"),
    ("validated/manifest.parquet", "evidence/validated of"),
    ("validated/facts.parquet", "evidence/validated of"),
    ("validated/quarantine.parquet", "evidence/validated of"),
    ("validated/report.html", "evidence/validated of"),
    ("records/gate.json", "evidence/records of"),
    ("provenance.dsse.json", "evidence/provenance.dsse.json"),
    ("bom.cdx.json", "evidence/bom.cdx.json"),
    ("croissant.json", "evidence/croissant.json"),
    ("README.md", "evidence/README.md"),
    ("model.sig", "evidence/model.sig"),
    ("training_record", "evidence/training_record"),
]


@pytest.mark.parametrize(("file", "culprit"), EVIDENCE)
def test_changed_evidence_is_named(world: World, file: str, culprit: str) -> None:
    path = world.evidence("2") / file
    with changed(path, flipped(path)):
        names(world.audit("2"), "does not hold", culprit)


@pytest.mark.parametrize("file", [file for file, _ in EVIDENCE])
def test_missing_evidence_is_listed(world: World, file: str) -> None:
    with changed(world.evidence("2") / file, None):
        report = world.audit("2")
    assert not report.holds
    subjects = [f.subject for f in report.findings if f.standing in ("missing", "does not hold")]
    assert any(file.split("/")[0] in subject for subject in subjects), subjects


@pytest.mark.parametrize("file", ["verdict/verdict.dsse.json", "scores/scores.parquet", "validated/manifest.parquet"])
def test_the_file_that_is_missing_is_named(world: World, file: str) -> None:
    with changed(world.evidence("2") / file, None):
        names(world.audit("2"), "missing", f"evidence/{file} of version 2")


def test_a_missing_sample_is_named(world: World) -> None:
    with changed(world.evidence("2") / "scores/samples/candidate/p0-7.png", None):
        assert "candidate/p0-7.png" in names(world.audit("2"), "missing", "scores/samples")


def test_added_evidence_is_named(world: World) -> None:
    with changed(world.evidence("2") / "note.txt", b"trust me"):
        assert "note.txt" in names(world.audit("2"), "does not hold", "the evidence of version 2")


def test_a_verdict_signed_by_another_key_does_not_hold(world: World) -> None:
    path = world.evidence("2") / "verdict" / VERDICT_FILE
    real = read_statement(path, VERDICT, world.home.open("tests").state.keys_of("gate"))
    forged = make_statement(VERDICT, {"candidate": world.candidates["2"]}, real.predicate)
    with changed(path, path.read_bytes()):
        write_statement(forged, path, open_signer(world.home.uri("run")))
        reason = names(world.audit("2"), "does not hold", VERDICT_FILE)
    assert "the ledger says sha256:" in reason and "the artifact store says sha256:" in reason
    assert world.audit("2").holds


def test_a_captions_rewritten_manifest_is_named(world: World) -> None:
    path = world.evidence("2") / "validated" / "manifest.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["license"] = "CC-BY-4.0"
    with changed(path, path.read_bytes()):
        pq.write_table(pa.Table.from_pylist(rows), path)
        report = world.audit("2")
    names(report, "does not hold", "validated/manifest.parquet")
    assert report.version and report.version.data[0].pictures is None, "what does not hold is not shown"


def test_a_refused_image_that_is_struck_out_is_named(world: World) -> None:
    path = world.evidence("2") / "validated" / "quarantine.parquet"
    table = pq.read_table(path)
    with changed(path, path.read_bytes()):
        pq.write_table(table.slice(0, 0), path)
        report = world.audit("2")
    names(report, "does not hold", "evidence/validated of")
    assert report.version and report.version.data[0].refused is None
    assert report.version.data[0].pictures, "the manifest, which croissant.json names by digest, still holds"


def test_changed_weights_are_named_with_their_file(world: World) -> None:
    path = world.weights("2") / "transformer" / "weights.safetensors"
    with changed(path, b"swapped"):
        report = world.audit("2")
    names(report, "does not hold", "the weights of version 2")
    reason = names(report, "does not hold", "weights/transformer/weights.safetensors of version 2")
    assert "bom.cdx.json and model.sig say" in reason


def test_weights_with_a_file_more_are_named(world: World) -> None:
    with changed(world.weights("2") / "pickle.bin", b"x"):
        report = world.audit("2")
    names(report, "does not hold", "the weights of version 2")
    names(report, "does not hold", "weights/pickle.bin of version 2")


def test_missing_weights_are_listed(world: World) -> None:
    folder = world.weights("2")
    folder.rename(folder.with_name("elsewhere"))
    try:
        report = world.audit("2")
    finally:
        folder.with_name("elsewhere").rename(folder)
    names(report, "missing", "the weights of version 2")


def test_a_changed_record_is_named(world: World) -> None:
    path = world.records / "run-2" / "fine-tune.json"
    with changed(path, path.read_bytes().replace(b'"seed": 7', b'"seed": 8')):
        report = world.audit("2")
    names(report, "does not hold", "record run-2/fine-tune.json")
    assert report.records["fine-tune"].parameters["seed"] == 7, "the copy beside the weights holds and is used"


@pytest.mark.parametrize("step", ["plan", "register", "promote"])
def test_a_missing_record_is_listed(world: World, step: str) -> None:
    with changed(world.records / "run-2" / f"{step}.json", None):
        names(world.audit("2"), "missing", f"record run-2/{step}.json")


def test_a_record_that_is_no_json_is_named(world: World) -> None:
    with changed(world.records / "run-2" / "plan.json", b"{"):
        names(world.audit("2"), "does not hold", "record run-2/plan.json")


def test_a_record_that_the_ledger_does_not_know_is_named(world: World) -> None:
    with changed(world.records / "run-2" / "approve.json", b"{}"):
        names(world.audit("2"), "does not hold", "record run-2/approve.json")


def test_all_records_gone(world: World) -> None:
    report = world.audit("2", records="")
    assert len([f for f in report.findings if f.standing == "missing" and f.part == "records"]) >= 10


def test_a_changed_training_image_is_named(world: World) -> None:
    with changed(world.picture(3), b"another picture"):
        names(world.audit("2"), "does not hold", "training image 3.png")


def test_a_training_image_that_is_gone_is_listed(world: World) -> None:
    with changed(world.picture(3), None):
        assert "not there any more" in names(world.audit("2"), "missing", "training image 3.png")


def test_the_verdict_of_an_earlier_champion_is_checked_too(world: World) -> None:
    path = world.evidence("1") / "verdict" / VERDICT_FILE
    with changed(path, flipped(path)):
        names(world.audit("3"), "does not hold", "verdict.dsse.json of version 1")


def edited(entry: Entry) -> Entry:
    return entry.model_copy(update={"body": entry.body.model_copy(update={"user": "somebody else"})})


def without_seventh(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.index != 7]


def with_a_changed_move(entries: list[Entry]) -> list[Entry]:
    return [edited(entry) if entry.body.kind == "moved" else entry for entry in entries]


@pytest.mark.parametrize(
    ("tamper", "culprit"),
    [(without_seventh, r"ledger entry 8 \("), (with_a_changed_move, r"ledger entry \d+ \(moved\) was changed")],
)
def test_a_changed_ledger_is_named(world: World, tamper: Callable[[list[Entry]], list[Entry]], culprit: str) -> None:
    entries = tamper(world.home.open("tests").entries())
    assert re.search(culprit, names(world.audit("2", entries=entries), "does not hold", "the ledger"))


def test_a_ledger_cut_short_is_shown_by_the_witness_and_by_the_mark(world: World, tmp_path: Path) -> None:
    whole = world.sources()
    cut = list(whole.entries)[:-2]
    assert "taken off its end" in names(world.audit("2", entries=cut), "does not hold", "checkpoint ")
    mark = Memory(tmp_path, "auditor")
    assert world.audit("2", mark=mark, checkpoints=()).holds
    report = world.audit("2", entries=cut, mark=mark, checkpoints=())
    assert "taken off its end" in names(report, "does not hold", "the high-water mark")


def test_a_checkpoint_that_was_changed_is_named(world: World) -> None:
    name, content = next(iter(world.home.witness.read()))
    report = world.audit("2", checkpoints=[(name, content.replace(b'"payload": "', b'"payload": "AAAA'))])
    names(report, "does not hold", f"checkpoint {name}")
    assert "completeness not proven" in report.ledger.proven


def test_a_checkpoint_of_another_ledger_or_of_a_revoked_key_says_nothing(world: World, tmp_path: Path) -> None:
    other = Embedded(tmp_path / "other")
    other.open()
    other.checkpoint()
    report = world.audit("2", checkpoints=list(other.witness.read()))
    assert report.holds and "completeness not proven" in report.ledger.proven
    assert any("another ledger" in f.reason for f in report.findings)
    copytree(world.home.folder, tmp_path / "lineage")
    home = Embedded(tmp_path / "lineage")
    home.revoke("witness", 1, "stolen")
    report = world.audit("2", entries=home.open("tests").entries())
    assert report.holds and "completeness not proven" in report.ledger.proven


def test_another_root_is_named(world: World) -> None:
    assert "opened by" in names(world.audit("2", root="f" * 64), "does not hold", "the root key")
    names(world.audit("2", root=""), "missing", "the root key")


def test_an_alias_moved_behind_the_ledgers_back_is_named(world: World) -> None:
    world.store.client.set_registered_model_alias("portraits", "champion", "3")
    try:
        reason = names(world.audit("2"), "does not hold", "alias champion")
    finally:
        world.store.client.set_registered_model_alias("portraits", "champion", "2")
    assert reason == "the ledger says 2; the registry says 3"


TAGS = ("standing", "candidate", "verdict", "decision", "incumbent")


@contextmanager
def tags(world: World) -> Iterator[Any]:
    """The registry, whose tags are put back afterwards."""
    found = world.store.version("2")
    assert found
    try:
        yield world.store.client
    finally:
        world.store.tag(found, found.tags)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_says_something_else_is_named(world: World, tag: str) -> None:
    with tags(world) as client:
        client.set_model_version_tag("portraits", "2", f"triptych.{tag}", "sha256:0")
        reason = names(world.audit("2"), "does not hold", f"tag {tag} of version 2 of portraits in the registry")
    assert reason.endswith("the registry says sha256:0")


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_is_gone_is_named(world: World, tag: str) -> None:
    with tags(world) as client:
        client.delete_model_version_tag("portraits", "2", f"triptych.{tag}")
        reason = names(world.audit("2"), "does not hold", f"tag {tag} of version 2 of portraits in the registry")
    assert reason.endswith("the registry says nothing")


def test_a_figure_that_mlflow_shows_otherwise_is_named(world: World) -> None:
    """The plot of later verdicts is drawn from it."""
    run = world.registered("2").mlflow_run
    before = world.store.client.get_run(run).data.metrics["gate/alignment/difference"]
    world.store.client.log_metric(run, "gate/alignment/difference", 0.9)
    try:
        names(world.audit("2"), "does not hold", "the figures of version 2 of portraits in the registry")
    finally:
        world.store.client.log_metric(run, "gate/alignment/difference", before)


def test_no_tag_is_forgotten(world: World) -> None:
    found = world.store.version("2")
    assert found and set(found.tags) == set(TAGS)


def test_without_a_registry_everything_in_it_is_missing(world: World) -> None:
    report = world.audit("2", registry="")
    missing = {f.subject.removesuffix(" of version 2 of portraits") for f in report.findings if f.standing == "missing"}
    assert {"the weights", "the model folder", "evidence/verdict", "evidence/scores"} <= missing


def test_steps_that_do_not_fit_together_are_named(world: World) -> None:
    """A record that the ledger names, but whose input is not what the step before gave."""
    with lying(world, "gate", lambda record: record.inputs.update(scores="sha256:other")) as entries:
        report = world.audit("2", entries=entries, checkpoints=())
    reason = names(report, "does not hold", "scores in run run-2")
    assert "step gate says sha256:other" in reason and "step evaluate" in reason


def test_an_artifact_without_its_producers_record_is_named(world: World) -> None:
    with lying(world, "evaluate", lambda record: record.outputs.clear()) as entries:
        report = world.audit("2", entries=entries, checkpoints=())
    assert "no record says which step gave it" in names(report, "missing", "scores in run run-2")


def test_a_step_that_the_ledger_does_not_name_is_missed(world: World) -> None:
    """As where the ledger was cut back and written on with other entries by who holds the run key."""
    x = Examination(world.sources(), Path("unused"))
    del x.state.records["run-2"]["evaluate"]
    with changed(world.records / "run-2" / "evaluate.json", None):
        checks.check_steps(x, "run-2", x.records("run-2"), world.registered("2"))
    assert x.findings["record run-2/evaluate.json"].standing == "missing"


def test_steps_that_ran_other_code_are_told(world: World) -> None:
    x = Examination(world.sources(), Path("unused"))
    records = x.records("run-2")
    gate = records["gate"].model_copy(update={"code": "sha256:other"})
    checks.check_steps(x, "run-2", {**records, "gate": gate}, None)
    assert x.findings["the code of run run-2"].standing == "not proven"


def test_many_images_that_are_gone_are_counted(world: World, tmp_path: Path) -> None:
    x = Examination(world.sources(), tmp_path)
    data = data_of(x, x.versions[1])
    assert data.pictures
    gone = [data.pictures[0].model_copy(update={"file_name": f"{n}.png", "uri": "file:///gone"}) for n in range(50)]
    check_pictures(x, data.model_copy(update={"pictures": tuple(gone)}), show=True)
    assert x.findings["30 more training images of run run-2"].standing == "missing"


def test_a_picture_in_a_changed_folder_proves_nothing(world: World) -> None:
    folder = world.evidence("2") / "scores"
    with changed(folder / "grid.png", b"another"):
        report = world.audit(str(folder / "samples/candidate/p1-7.png"))
    assert [f.standing for f in report.findings if f.subject == "the picture"] == ["not proven"]


def test_json_says_so_too(world: World) -> None:
    with changed(world.evidence("2") / "README.md", None):
        written = json.loads(world.audit("2").model_dump_json())
    assert written["holds"] is False
