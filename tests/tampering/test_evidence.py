"""Every piece of evidence, every record, the weights and the images, changed by somebody who reaches the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.register.register import DOCUMENTS
from lineage.artifacts import fetch_weights
from lineage.digests import LineageError, canonical, digest_file, digest_path, hex_of
from lineage.entries import LedgerError
from lineage.records import read_records
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, read_statement, write_statement
from pipelines.audit import Report, write_text
from tests.audit.world import MODEL, World

EVIDENCE = (
    "README.md",
    "bom.cdx.json",
    "croissant.json",
    "model.sig",
    "provenance.dsse.json",
    "records",
    "scores",
    "training_record",
    "validated",
    "verdict",
)
STEPS = (
    "snapshot-data",
    "plan",
    "validate-data",
    "encode-features",
    "fine-tune",
    "evaluate",
    "gate",
    "register",
    "promote",
    "close-run",
)


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, other: Path) -> None:
    """By the same file of an older version."""
    shutil.copyfile(other, path)


def swap(path: Path, other: Path) -> None:
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def insert(path: Path, other: Path) -> None:
    shutil.copyfile(path, path.with_name(f"copy-{path.name}"))


FILE_OPERATIONS = (flip, delete, truncate, replace, swap, insert)
Operation = Callable[[Path, Path], None]


def largest(folder: Path) -> Path:
    """A file, or the first of a folder's largest ones, relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size).relative_to(folder)


def named(report: Report, *culprits: str) -> None:
    """The report does not hold and names one of the culprits."""
    bad = [f.subject for f in report.findings if f.standing in ("does not hold", "missing")]
    assert not report.holds
    assert any(culprit in subject for culprit in culprits for subject in bad), write_text(report)[-3000:]


def test_no_kind_of_evidence_is_forgotten(world: World) -> None:
    """What register and the steps really leave is what is tampered with here."""
    state = world.home.open("tests").state
    for version in state.versions[MODEL].values():
        assert set(version.evidence) == set(EVIDENCE)
    assert {path.split("/")[0] for path in DOCUMENTS.values()} <= set(EVIDENCE)
    assert {step for steps in state.records.values() for step in steps} == set(STEPS)


@pytest.mark.parametrize("operation", FILE_OPERATIONS)
@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence(world: World, name: str, operation: Operation) -> None:
    path, other = world.evidence("2") / name, world.evidence("1") / name
    if path.is_dir():
        inner = largest(path)
        path, other = path / inner, other / inner
        if not other.is_file():
            other = other.parent / largest(other.parent)
    same = path.read_bytes() == other.read_bytes()
    operation(path, other)
    if same and operation in (replace, swap):
        assert world.audit("2").holds, "both versions hold the same"
    else:
        named(world.audit("2"), f"evidence/{name}", "the evidence of version 2")


def become_its_listing(folder: Path) -> None:
    """Put in a folder's place a file that holds what the folder's digest was taken of."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listing = canonical([[name, digest_file(folder / name)] for name in files])
    shutil.rmtree(folder)
    folder.write_bytes(listing)


@pytest.mark.parametrize("name", ["records", "scores", "validated", "verdict"])
def test_a_folder_of_evidence_exchanged_for_a_file_that_lists_it(world: World, name: str) -> None:
    become_its_listing(world.evidence("2") / name)
    named(world.audit("2"), f"evidence/{name}", "the evidence of version 2")


def test_weights_exchanged_for_a_file_that_lists_them(world: World, tmp_path: Path) -> None:
    """Refused by the digest alone, signature or not."""
    digest = digest_path(world.weights("2"))
    become_its_listing(world.weights("2"))
    named(world.audit("2"), "the weights of version 2")
    assert hex_of(digest_path(world.weights("2"))) == hex_of(digest)
    with pytest.raises(LineageError, match="models:/portraits/2 have digest sha256:"):
        fetch_weights(world.store.tracking_uri, f"models:/{MODEL}/2", digest, tmp_path)


@pytest.mark.parametrize("operation", FILE_OPERATIONS)
@pytest.mark.parametrize("step", STEPS)
def test_records(world: World, step: str, operation: Operation) -> None:
    folder = world.records / "run-2"
    operation(folder / f"{step}.json", world.records / "run-1" / f"{step}.json")
    named(world.audit("2"), f"record run-2/{step}.json", f"record run-2/copy-{step}.json")


@pytest.mark.parametrize("operation", FILE_OPERATIONS)
def test_weights(world: World, operation: Operation, tmp_path: Path) -> None:
    """Named by the audit and by reconcile, refused by whoever fetches them, and by a move."""
    state = world.home.open("tests").state
    name = Path("transformer") / "weights.safetensors"
    operation(world.weights("2") / name, world.weights("1") / name)
    report = world.audit("2")
    named(report, "the weights of version 2")
    named(report, f"weights/{name if operation is not insert else name.with_name(f'copy-{name.name}')} of version 2")
    with pytest.raises(LineageError, match="models:/portraits/2 have digest"):
        fetch_weights(world.store.tracking_uri, f"models:/{MODEL}/2", state.versions[MODEL]["2"].candidate, tmp_path)
    assert any("the champion, version 2, cannot be trusted" in line for line in world.mover().reconcile().said)
    size = world.home.open("tests").state.size
    if operation in (swap,):
        with pytest.raises(LineageError, match="the weights of version 1 of portraits were changed"):
            world.mover().move("rollback", "1", "because")
    assert world.home.open("tests").state.size == size, "nothing was written"


@pytest.mark.parametrize("operation", FILE_OPERATIONS)
@pytest.mark.parametrize("name", ["MLmodel", "requirements.txt"])
def test_what_lies_around_the_weights(world: World, name: str, operation: Operation) -> None:
    """What MLflow's loader runs is the attacker's otherwise: `MLmodel` names the module that is loaded."""
    path, other = world.model("2") / name, world.model("1") / name
    if operation in (replace, swap) and path.read_bytes() == other.read_bytes():
        other.write_bytes(other.read_bytes() + b"# another\n")
    operation(path, other)
    named(world.audit("2"), "the model folder of version 2")
    assert any("the champion, version 2, cannot be trusted" in line for line in world.mover().reconcile().said)


def test_code_put_beside_the_weights(world: World) -> None:
    (world.model("2") / "code").mkdir()
    (world.model("2") / "code" / "portrait_model.py").write_text("import os")
    named(world.audit("2"), "the model folder of version 2")


@pytest.mark.parametrize("operation", (flip, delete, truncate, replace, swap))
def test_training_images(world: World, operation: Operation) -> None:
    operation(world.picture(2), world.picture(0))
    named(world.audit("2"), "training image 2.png")


@pytest.mark.parametrize("role", ["run", "promotion", "witness", "root"])
def test_a_verdict_forged_with_every_key_but_the_gates(world: World, role: str) -> None:
    path = world.evidence("3") / "verdict" / VERDICT_FILE
    real = read_statement(path, VERDICT, world.home.open("tests").state.keys_of("gate"))
    kind = real.model_copy(update={"predicate": {**real.predicate, "decision": "promote"}})
    write_statement(kind, path, open_signer(world.home.uri(role)))
    named(world.audit("3"), f"verdict/{VERDICT_FILE}")


def test_a_record_written_anew_by_a_holder_of_the_run_key(world: World) -> None:
    """The ledger takes a later record of a step; what the run's provenance signed of it stays."""
    from lineage.entries import Recorded
    from lineage.records import write_record

    record = read_records(str(world.records), "run-2")["fine-tune"]
    record.parameters["seed"] = 8
    write_record(str(world.records), record)
    said = Recorded(run="run-2", step="fine-tune", status="complete", record=record.digest())
    world.home.open("tests").append(said, open_signer(world.home.uri("run")))
    report = world.audit("2")
    named(report, "record run-2/fine-tune.json")
    assert any("provenance.dsse.json says" in f.reason for f in report.findings if f.standing == "does not hold")


def test_evidence_exchanged_together_with_its_registration(world: World) -> None:
    """A holder of the run key who also reaches the files cannot have the ledger name other ones."""
    ledger = world.home.open("tests")
    registered = ledger.state.versions[MODEL]["2"]
    other = registered.model_copy(update={"evidence": {**registered.evidence, "README.md": "sha256:0"}})
    with pytest.raises(LedgerError, match="never changes"):
        ledger.append(other, open_signer(world.home.uri("run")))
