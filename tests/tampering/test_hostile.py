"""Evidence made to hang, exhaust or mislead its reader: the audit ends every time, soon, and names it."""

from __future__ import annotations

import json
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL.PngImagePlugin import PngInfo, putchunk

from components.register.register import create
from lineage.pictures import manifest_rows
from lineage.signing import read_public
from pipelines.audit import UnknownError, write_page, write_text
from tests.audit.test_command import run
from tests.audit.world import MODEL, World, registered_with
from tests.tampering.test_evidence import named

pytestmark = pytest.mark.timeout(60)
DEEP = b"[" * 1_000_000


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def out(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**43)


STRANGE = (pipe, endless, out, sparse)


@pytest.mark.parametrize("make", STRANGE)
@pytest.mark.parametrize(
    "name", ["README.md", "scores/samples/candidate/p0-7.png", "validated/manifest.parquet", "more"]
)
def test_what_is_no_regular_file_in_the_evidence(world: World, name: str, make: Callable[[Path], None]) -> None:
    path = world.evidence("2") / name
    path.unlink(missing_ok=True)
    make(path)
    named(world.audit("2"), f"evidence/{name.partition('/')[0]}", "the evidence of version 2")


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_regular_file_beside_the_weights(world: World, make: Callable[[Path], None]) -> None:
    make(world.model("2") / "strange")
    named(world.audit("2"), "the model folder of version 2")


@pytest.mark.parametrize("make", STRANGE)
def test_a_record_that_is_no_regular_file(world: World, make: Callable[[Path], None]) -> None:
    path = world.records / "run-2" / "gate.json"
    path.unlink()
    make(path)
    named(world.audit("2"), "record run-2/gate.json")


@pytest.mark.parametrize("make", STRANGE)
def test_a_training_image_that_is_no_regular_file(world: World, make: Callable[[Path], None]) -> None:
    world.picture(2).unlink()
    make(world.picture(2))
    named(world.audit("2"), "training image 2.png")


def repeated(path: Path, rows: int = 2_000_000, text: str = "x" * 1_000_000) -> None:
    """A small file that unpacks to terabytes: one text in every row."""
    index = pa.array([0] * rows, pa.int32())
    same = pa.DictionaryArray.from_arrays(index, pa.array([text]))
    table = pa.table({"row": index, "file_name": same, "expectation": same, "value": same, "reason": same})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1_000_000


def numberless(path: Path) -> None:
    """A small file of many rows."""
    pq.write_table(pa.table({"row": pa.array([0]).take(pa.array([0] * 20_000_000, pa.int32()))}), path)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("bomb", [repeated, numberless])
def test_a_table_that_unpacks_to_more_than_fits(world: World, bomb: Callable[[Path], None]) -> None:
    """It is not opened where its digest does not hold, and not read to its end where it does."""
    number = registered_with(world, lambda evidence: bomb(evidence / "validated" / "quarantine.parquet"))
    report = world.audit(number)
    named(report, f"evidence/validated/quarantine.parquet of version {number}")
    assert report.version and report.version.data[0].refused is None
    bomb(world.evidence("2") / "validated" / "quarantine.parquet")
    report = world.audit("2")
    named(report, "evidence/validated of version 2")
    reasons = {f.subject: f.reason for f in report.findings}
    assert "it is not opened" in reasons["evidence/validated/quarantine.parquet of version 2 of portraits"]


def test_a_table_of_something_else_than_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [1], "reason": [["a", "b"]]}), tmp_path / "nested")
    with pytest.raises(Exception, match=r"no text or numbers in \['reason'\]"):
        list(manifest_rows(tmp_path / "nested", most=2**20))


def large_png(path: Path, side: int = 60_000, **text: str) -> None:
    """A picture of few bytes and billions of pixels."""
    info = PngInfo()
    for name, value in text.items():
        info.add_itxt(name.replace("_", "-"), value)
    row = b"\0" * (side // 8 + 1)
    packer = zlib.compressobj(9)
    with path.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        putchunk(stream, b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        for kind, content, *_ in info.chunks:
            putchunk(stream, kind, content)
        packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        putchunk(stream, b"IDAT", packed)
        putchunk(stream, b"IEND", b"")
    assert path.stat().st_size < 1_000_000


def test_a_picture_of_more_pixels_than_fit(world: World, tmp_path: Path) -> None:
    large_png(tmp_path / "large.png", model=MODEL, model_digest=world.candidates["2"])
    try:
        report = world.audit(str(tmp_path / "large.png"))
    except UnknownError:
        return  # what is not read says nothing of itself
    assert 'alt="the picture"' not in write_page(report)


def test_a_training_image_of_more_pixels_than_fit(world: World) -> None:
    """It is the pinned one, and cannot be shown."""
    report = world.audit("2")
    large_png(world.picture(9), 20_000)
    images = {"training/1.png": world.picture(9).read_bytes()}
    assert "<img " not in write_page(report.model_copy(update={"images": images}))


DOCUMENTS = ["scores/evaluation.json", "croissant.json", "bom.cdx.json", "model.sig", "provenance.dsse.json"]


@pytest.mark.parametrize("content", [DEEP, b"", b"null", b"[]", b'{"a": {}}', b"\xff" * 99, b"[" + b"9" * 9_999 + b"]"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_none(world: World, name: str, content: bytes) -> None:
    """Signed into the ledger by a dishonest holder of the run key."""
    number = registered_with(world, lambda evidence: (evidence / name).write_bytes(content))
    named(world.audit(number), f"evidence/{name} of version {number}")


def test_a_document_too_large(world: World) -> None:
    number = registered_with(world, lambda e: (e / "bom.cdx.json").write_bytes(b"[" + b"0," * 10**7 + b"0]"))
    named(world.audit(number), f"evidence/bom.cdx.json of version {number}")


@pytest.mark.parametrize("content", [DEEP, b'{"a":' * 99_999, b"0" * 2**25])
def test_a_record_that_is_none(world: World, content: bytes) -> None:
    (world.records / "run-2" / "gate.json").write_bytes(content)
    named(world.audit("2"), "record run-2/gate.json")


def test_a_checkpoint_and_a_public_key_that_are_none(world: World) -> None:
    state = world.home.open("tests").state
    (world.home.witness.folder / f"{state.ledger}-0000000003.json").write_bytes(DEEP)
    named(world.audit("2"), f"checkpoint {state.ledger}-0000000003.json")
    (world.home.keys / "root.pub").write_bytes(DEEP)
    with pytest.raises(Exception, match="is not a public key"):
        read_public(world.home.keys / "root.pub")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No connection is made; gives those that were tried."""
    tried: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("offline")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: tried.append(asked) or [])
    yield tried


def elsewhere(evidence: Path) -> None:
    path = evidence / "validated" / "manifest.parquet"
    rows = pq.read_table(path).to_pylist()
    places = ("s3://bucket/1.png", "parquet+s3://bucket/all.parquet#image/0", "http://169.254.169.254/", "gs://b/2")
    for row, place in zip(rows, places, strict=False):
        row["uri"] = place
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_images_elsewhere_are_not_fetched(world: World, offline: list[Any]) -> None:
    """Where an image lies is no part of the manifest's digest, so a stranger can send a reader anywhere."""
    elsewhere(world.evidence("2"))
    report = world.audit("2")
    named(report, "evidence/validated of version 2")
    assert report.version and report.version.data[0].pictures is None, "no place in it is gone to"
    number = registered_with(world, elsewhere, "1")
    report = world.audit(number)
    unread = [f for f in report.findings if f.subject.startswith("training image") and f.standing == "not proven"]
    assert len(unread) == 2 and all("nothing is fetched unless asked for" in f.reason for f in unread)
    assert offline == []


def test_evidence_elsewhere_is_not_fetched(world: World, offline: list[Any]) -> None:
    """Whoever reaches MLflow's database says where a version lies."""
    import sqlite3

    with sqlite3.connect(world.folder / "mlflow.db") as database:
        for column in ("source", "storage_location"):
            database.execute(f"UPDATE model_versions SET {column} = 's3://elsewhere/model' WHERE version = 2")
    named(world.audit("2"), "the model folder of version 2")
    assert offline == []


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000, None])
def test_a_damaged_registry(world: World, content: bytes | None) -> None:
    path = world.folder / "mlflow.db"
    whole = path.read_bytes()
    path.write_bytes(content if content is not None else whole[:100] + b"\xff" * 4000 + whole[4100:])
    found = run(world.folder, "2")
    assert found.exit_code == 1 and "the registry" in found.output
    path.write_bytes(whole)


@pytest.mark.parametrize("what", ["x" * 5_000, "9" * 5_000, "a\0b", "\ud800", "sha256:" + "0" * 9_999, "/" * 5_000])
@pytest.mark.parametrize("image", [True, False])
def test_an_argument_that_is_nothing(world: World, what: str, image: bool) -> None:
    with pytest.raises(UnknownError):
        world.audit(what, image)


def test_a_reader_out_of_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*asked: Any) -> Any:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr("pipelines.audit.checks.manifest_rows", exhausted)
    named(world.audit("2"), "evidence/scores/samples of version 2")


def test_names_cannot_forge_lines(world: World) -> None:
    name = "x\n  holds          the ledger\x1b[2J"
    (world.records / "run-2" / f"{name}.json").write_text("{}")
    (world.evidence("2") / name).write_text("")
    text = write_text(world.audit("2"))
    assert "\x1b" not in text and text.count("\n  holds          the ledger") <= 1
    assert "\n  holds          the ledger\n" not in text


def test_a_verdict_with_other_fields_is_shown_without_them(world: World) -> None:
    """A gate that signs figures without numbers is named, and the report is written all the same."""
    from lineage.entries import Judged, Registered
    from lineage.signing import open_signer
    from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement

    gate, run = (open_signer(world.home.uri(role)) for role in ("gate", "run"))
    third, folder = world.registered("3"), world.evidence("3") / "verdict"
    judged = world.home.open("tests").state.verdicts[third.verdict]
    said = {"run": "run-9", "decision": "reject", "reasons": 7, "figures": [{"name": "x"}], "gate": {}}
    said["evaluation"] = {"incumbent": {"digest": judged.incumbent}, "terms": {}}
    statement = make_statement(VERDICT, {"candidate": third.candidate}, said)
    digest = write_statement(statement, folder / VERDICT_FILE, gate)
    ledger = world.home.open("tests")
    ledger.append(Judged(**judged.model_dump() | {"run": "run-9", "verdict": digest}), gate)
    made = create(world.store, third.mlflow_run, world.model("3").as_uri(), {}, "").number
    ledger.append(Registered(**third.model_dump() | {"run": "run-9", "version": made, "verdict": digest}), run)
    report = world.audit(made)
    named(report, f"verdict.dsse.json of version {made}")
    assert "what it measured is unknown" in write_text(report) and write_page(report)


def test_json_of_a_report_is_json(world: World) -> None:
    """Also where a file's name is no text."""
    (world.records / "run-2" / os.fsdecode(b"\xff.json")).write_text("{}")
    (world.evidence("2") / os.fsdecode(b"\xff")).write_text("")
    assert json.loads(world.audit("2").model_dump_json())
