"""Snapshot data: the same content has the same digest, and what cannot be pinned is refused with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp.dsl import Dataset
from PIL import Image
from pydantic import ValidationError

from components.snapshot_data.component import snapshot_data
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import Snapshot, take_snapshot
from components.snapshot_data.source import SnapshotError, check_source
from lineage.digests import digest_file
from lineage.records import read_records
from tests.runs import run_context

ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": "red hair", "license": "CC0-1.0", "consent": "drawn", "source": "test"},
    {"file_name": "more/b.png", "text": "a “café”\nand 😀", "license": "CC0-1.0", "consent": "drawn"},
    {"file_name": "c c%20#.png", "text": None, "attributes": {"glasses": True}},
]


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    folder = tmp_path / "portraits"
    (folder / "more").mkdir(parents=True)
    for shade, row in enumerate(ROWS):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / row["file_name"])
    write(folder, ROWS)
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change(folder: Path, row: int, **values: Any) -> None:
    write(folder, [{**one, **values} if number == row else one for number, one in enumerate(ROWS)])


def take(folder: Path) -> Snapshot:
    return take_snapshot(DataSettings(source=str(folder)), folder.parent / "snapshot")


def as_parquet(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    rows = [{key: row.get(key) for key in ("file_name", "text", "license", "consent", "source")} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def link_inside(folder: Path) -> None:
    (folder / "a.png").rename(folder / "z")
    (folder / "a.png").symlink_to(folder / "z")


def rename(folder: Path) -> None:
    (folder / "a.png").rename(folder / "z.png")
    change(folder, 0, file_name="z.png")


SAME: dict[str, Callable[[Path], object]] = {
    "nothing changed": lambda folder: None,
    "listed in another order": lambda folder: write(folder, ROWS[::-1]),
    "blank lines": lambda folder: append(folder / "metadata.jsonl", b"\n\n"),
    "a byte order mark": lambda folder: (folder / "metadata.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (folder / "metadata.jsonl").read_bytes()
    ),
    "the same name written otherwise": lambda folder: change(folder, 0, file_name="./a.png"),
    "a key that is not pinned": lambda folder: change(folder, 0, attributes={"glasses": False}),
    "listed in parquet": as_parquet,
    "an image that is not listed": lambda folder: shutil.copy(folder / "a.png", folder / "d.png"),
    "a link that stays inside": link_inside,
}

OTHER: dict[str, Callable[[Path], object]] = {
    "one byte more": lambda folder: append(folder / "a.png", b"\0"),
    "another caption": lambda folder: change(folder, 0, text="red hairs"),
    "an empty caption for a missing one": lambda folder: change(folder, 2, text=""),
    "another license": lambda folder: change(folder, 0, license="CC-BY-4.0"),
    "consent withdrawn": lambda folder: change(folder, 1, consent=None),
    "another source": lambda folder: change(folder, 0, source="elsewhere"),
    "another name": rename,
    "a row less": lambda folder: write(folder, ROWS[:2]),
    "a row twice": lambda folder: write(folder, [*ROWS, ROWS[0]]),
}


@pytest.mark.parametrize("alter", SAME.values(), ids=SAME)
def test_same_content_has_the_same_digest(portraits: Path, alter: Callable[[Path], object]) -> None:
    before = take(portraits)
    alter(portraits)
    assert take(portraits).digest == before.digest


@pytest.mark.parametrize("alter", OTHER.values(), ids=OTHER)
def test_other_content_has_another_digest(portraits: Path, alter: Callable[[Path], object]) -> None:
    before = take(portraits)
    alter(portraits)
    assert take(portraits).digest != before.digest


def test_the_digest_does_not_depend_on_the_place(portraits: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "portraits"
    shutil.copytree(portraits, moved)
    here, there = take(portraits), take(moved)
    assert here.digest == there.digest
    uris = pq.read_table(tmp_path / "elsewhere" / "snapshot" / "manifest.parquet")["uri"].to_pylist()
    assert all(uri.startswith(f"file://{moved}/") for uri in uris)


def test_the_manifest_says_what_is_there(portraits: Path, tmp_path: Path) -> None:
    shutil.copy(portraits / "a.png", portraits / "more" / "unlisted.PNG")
    taken = take(portraits)
    table = pq.read_table(tmp_path / "snapshot" / "manifest.parquet")
    assert table.column_names == [
        "file_name",
        "sha256",
        "bytes",
        "text",
        "license",
        "consent",
        "source",
        "split",
        "uri",
        "phash",
    ]
    rows = table.to_pylist()
    assert [row["file_name"] for row in rows] == ["a.png", "c c%20#.png", "more/b.png"]
    for row in rows:
        path = Path(row["uri"].removeprefix("file://"))
        assert (row["sha256"], row["bytes"]) == (digest_file(path), path.stat().st_size)
    told = {row["file_name"]: {key: row[key] for key in ("text", "license", "consent", "source")} for row in rows}
    assert told == {
        row["file_name"]: {key: row.get(key) for key in ("text", "license", "consent", "source")} for row in ROWS
    }
    assert (taken.rows, taken.bytes) == (3, sum(row["bytes"] for row in rows))
    assert taken.unlisted == ("more/unlisted.PNG",)
    assert sorted(path.name for path in (tmp_path / "snapshot").iterdir()) == ["manifest.parquet"]


def test_a_file_uri_is_as_good_as_a_path(portraits: Path, tmp_path: Path) -> None:
    named = take_snapshot(DataSettings(source=f"file://{portraits}"), tmp_path / "named")
    assert named.digest == take(portraits).digest


def test_a_snapshot_is_taken_again_over_an_old_one(portraits: Path, tmp_path: Path) -> None:
    take(portraits)
    write(portraits, ROWS[:1])
    take(portraits)
    assert len(pq.read_table(tmp_path / "snapshot" / "manifest.parquet")) == 1


def link_out(folder: Path) -> None:
    outside = folder.parent / "secret.png"
    shutil.copy(folder / "a.png", outside)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(outside)


def folder_link_out(folder: Path) -> None:
    shutil.move(folder / "more", folder.parent / "more")
    (folder / "more").symlink_to(folder.parent / "more")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no folder .*portraits; set data.source"),
    "an empty folder": (emptied, "portraits is empty"),
    "no metadata": (lambda folder: (folder / "metadata.jsonl").unlink(), r"no metadata.jsonl or metadata.parquet in"),
    "two metadata files": (
        lambda folder: (folder / "metadata.parquet").write_bytes(b""),
        "has both metadata.jsonl and metadata.parquet; keep the one",
    ),
    "metadata without rows": (lambda folder: write(folder, []), "metadata.jsonl lists no image"),
    "not JSON": (
        lambda folder: append(folder / "metadata.jsonl", b'{"file_name": \n'),
        "metadata.jsonl line 4 is not JSON",
    ),
    "JSON nested too deeply": (
        lambda folder: append(folder / "metadata.jsonl", b"[" * 200_000),
        "metadata.jsonl line 4 is not JSON",
    ),
    "not an object": (
        lambda folder: append(folder / "metadata.jsonl", b"[1]\n"),
        "metadata.jsonl line 4 is not a JSON object",
    ),
    "not UTF-8": (lambda folder: append(folder / "metadata.jsonl", b"\xff"), "metadata.jsonl is not UTF-8"),
    "not parquet": (
        lambda folder: (folder / "metadata.jsonl").rename(folder / "metadata.parquet"),
        "metadata.parquet is not readable as parquet",
    ),
    "no file_name": (lambda folder: change(folder, 1, file_name=None), "line 2 has no file_name"),
    "an empty file_name": (lambda folder: change(folder, 1, file_name=""), "line 2 has no file_name"),
    "an absolute file_name": (
        lambda folder: change(folder, 1, file_name=str(folder / "a.png")),
        r"file_name '/.*a.png' in .*line 2 leaves the folder",
    ),
    "a climbing file_name": (
        lambda folder: change(folder, 1, file_name="more/../../portraits/a.png"),
        "file_name 'more/../../portraits/a.png' in .*line 2 leaves the folder",
    ),
    "a file_name with a null byte": (
        lambda folder: change(folder, 1, file_name="a\0.png"),
        "in .*line 2 leaves the folder",
    ),
    "a file_name that is too long": (
        lambda folder: change(folder, 1, file_name="a" * 5000),
        "in .*line 2 cannot be looked up",
    ),
    "a link out": (link_out, "file_name 'a.png' in .*line 1 is a link out of"),
    "a folder that is a link out": (folder_link_out, "file_name 'more/b.png' in .*line 2 is a link out of"),
    "a file that is not there": (
        lambda folder: (folder / "a.png").unlink(),
        "file_name 'a.png' in .*line 1 is not a file in .*; add the file or drop the row",
    ),
    "a folder for a file": (lambda folder: change(folder, 0, file_name="more"), "'more' in .*line 1 is not a file"),
    "a caption that is not text": (lambda folder: change(folder, 0, text=7), "text in .*line 1 is 7, not text"),
    "consent that is not text": (
        lambda folder: change(folder, 2, consent=True),
        "consent in .*line 3 is True, not text",
    ),
    "half a character": (lambda folder: change(folder, 0, text="\ud83d"), "text in .*line 1 holds half a character"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_pinned_is_refused(
    portraits: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(portraits)
    with pytest.raises(SnapshotError, match=message):
        check_source(DataSettings(source=str(portraits)))
    with pytest.raises(SnapshotError, match=message):
        take(portraits)
    assert not (tmp_path / "snapshot").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [("portraits", "is relative; give an absolute path"), ("s3://bucket/portraits", "is not a local folder")],
)
def test_sources_that_are_not_local_folders(source: str, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        check_source(DataSettings(source=source))


def test_an_image_that_cannot_be_read(portraits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return readable(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SnapshotError, match=r"a\.png cannot be read: .*Permission denied; make it readable"):
        take(portraits)
    assert not (portraits.parent / "snapshot").exists()


@pytest.mark.parametrize("section", [{}, {"source": ""}, {"source": "/data", "sources": "/data"}])
def test_settings_are_strict(section: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(section)


def test_the_step_leaves_its_record(portraits: Path, tmp_path: Path) -> None:
    run = run_context(tmp_path, "one").model_dump()
    output = Dataset(uri=str(tmp_path / "snapshot"))
    digest, rows = snapshot_data.python_func(run=run, data={"source": str(portraits)}, snapshot=output)
    record = read_records(run["records"], "one")["snapshot-data"]
    assert (record.status, record.outputs["snapshot"]) == ("complete", digest)
    assert record.inputs["metadata"] == digest_file(portraits / "metadata.jsonl")
    assert (rows, record.facts["rows"], record.facts["unlisted"]) == (3, 3, 0)

    shutil.rmtree(portraits)
    with pytest.raises(SnapshotError):
        snapshot_data.python_func(run=run, data={"source": str(portraits)}, snapshot=output)
    assert "there is no folder" in str(read_records(run["records"], "one")["snapshot-data"].error)


def test_nothing_heavy_is_loaded(portraits: Path, tmp_path: Path) -> None:
    """A run with nothing new must end within seconds, and it always takes a snapshot."""
    code = f"""if True:
        import sys
        from pathlib import Path
        from components.snapshot_data.settings import DataSettings
        from components.snapshot_data.source import check_source
        check_source(DataSettings(source={str(portraits)!r}))
        assert "pyarrow" not in sys.modules
        from components.snapshot_data.snapshot import take_snapshot
        take_snapshot(DataSettings(source={str(portraits)!r}), Path({str(tmp_path / "snapshot")!r}))
        print(sorted({{"pandas", "PIL", "torch", "mlflow", "great_expectations", "kfp"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
