"""Snapshot data: the same content has the same digest, and what cannot be pinned is refused with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
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
from components.snapshot_data.folder import SETTLED, SnapshotError
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import Snapshot, take_snapshot
from components.snapshot_data.source import open_source
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
    "a row twice": lambda folder: write(folder, [*ROWS, ROWS[0]]),
    "the split that it has anyway": lambda folder: change(folder, 0, split="train"),
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
    "held out": lambda folder: change(folder, 0, split="validation"),
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
    assert (taken.unlisted, taken.refused, taken.splits) == (1, 0, {"train": 3})
    names = {path.name for path in (tmp_path / "snapshot").iterdir()}
    assert names == {"manifest.parquet", "refused.parquet", "snapshot.json", "croissant.json"}


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


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no folder .*portraits; set data.source"),
    "an empty folder": (emptied, "nothing is in .*portraits; put images and a metadata.jsonl there"),
    "no metadata": (lambda folder: (folder / "metadata.jsonl").unlink(), r"no metadata.jsonl or metadata.parquet in"),
    "two metadata files": (
        lambda folder: (folder / "metadata.parquet").write_bytes(b""),
        "has both metadata.jsonl and metadata.parquet; keep the one",
    ),
}
CONTENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "metadata without rows": (lambda folder: write(folder, []), "lists no image that can be pinned; add one row"),
    "not parquet": (
        lambda folder: (folder / "metadata.jsonl").rename(folder / "metadata.parquet"),
        "metadata.parquet is not readable as parquet",
    ),
    "parquet without file names": (lambda folder: without_names(folder), "has no column file_name, only image, text"),
    "no row that is good": (
        lambda folder: write(folder, [{"image": "a.png"}]),
        "no image that can be pinned; row 1: file_name is None; name the image",
    ),
}


def without_names(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    pq.write_table(pa.table({"image": ["a.png"], "text": ["a"]}), folder / "metadata.parquet")


@pytest.mark.parametrize(("spoil", "message"), {**SOURCES, **CONTENTS}.values(), ids={**SOURCES, **CONTENTS})
def test_a_source_that_cannot_be_pinned_is_refused(
    portraits: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(portraits)
    with pytest.raises(SnapshotError, match=message):
        take(portraits)
    assert not (tmp_path / "snapshot").exists()


@pytest.mark.parametrize(("spoil", "message"), SOURCES.values(), ids=SOURCES)
def test_what_is_no_source_is_refused_before_a_run(
    portraits: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(portraits)
    with pytest.raises(SnapshotError, match=message):
        open_source(DataSettings(source=str(portraits)))


def two_captions(folder: Path) -> None:
    write(folder, [*ROWS, {**ROWS[0], "text": "blue hair"}])


# what is done to the folder: (number of the row, its file_name, what the reason says, what the value holds), …
FAULTS: dict[str, tuple[Callable[[Path], object], list[tuple[int, str | None, str, str]]]] = {
    "not JSON": (
        lambda folder: append(folder / "metadata.jsonl", b'{"file_name": \n'),
        [(4, None, "the line is not JSON (Expecting value", '{"file_name": ')],
    ),
    "JSON nested too deeply": (
        lambda folder: append(folder / "metadata.jsonl", b"[" * 200_000),
        [(4, None, "the line is not JSON", "[[[")],
    ),
    "an endless line": (
        lambda folder: append(folder / "metadata.jsonl", b"x" * 3_000_000 + b"\n[1]"),
        [(4, None, "longer than 1048576 bytes", ""), (5, None, "not a JSON object", "[1]")],
    ),
    "not UTF-8": (
        lambda folder: append(folder / "metadata.jsonl", b"\xff"),
        [(4, None, "is not UTF-8 (byte 0)", "xff")],
    ),
    "no file_name": (lambda folder: change(folder, 1, file_name=None), [(2, None, "file_name is None", "")]),
    "an empty file_name": (lambda folder: change(folder, 1, file_name=""), [(2, "", "file_name is ''", "")]),
    "a number for a file_name": (lambda folder: change(folder, 1, file_name=7), [(2, None, "file_name is 7", "7")]),
    "an absolute file_name": (
        lambda folder: change(folder, 1, file_name="/etc/passwd"),
        [(2, "/etc/passwd", "leaves the folder", "/etc/passwd")],
    ),
    "a climbing file_name": (
        lambda folder: change(folder, 1, file_name="more/../../portraits/a.png"),
        [(2, "more/../../portraits/a.png", "leaves the folder; name a file inside", "more/../..")],
    ),
    "a file_name with a null byte": (
        lambda folder: change(folder, 1, file_name="a\0.png"),
        [(2, "a\0.png", "leaves the folder", "a\\x00.png")],
    ),
    "half a character in a file_name": (
        lambda folder: change(folder, 1, file_name="\ud83d.png"),
        [(2, "?.png", "cannot be looked up", "ud83d")],
    ),
    "a file_name that is too long": (
        lambda folder: change(folder, 1, file_name="a" * 5000),
        [(2, "a" * 5000, "cannot be looked up", "aaa")],
    ),
    "a link out": (link_out, [(1, "a.png", "is a link out of", "a.png")]),
    "a folder that is a link out": (folder_link_out, [(2, "more/b.png", "is a link out of", "b.png")]),
    "a file that is not there": (
        lambda folder: (folder / "a.png").unlink(),
        [(1, "a.png", "is not a file in", "a.png")],
    ),
    "a folder for a file": (lambda folder: change(folder, 0, file_name="more"), [(1, "more", "is not a file", "")]),
    "a caption that is not text": (
        lambda folder: change(folder, 0, text=["red"]),
        [(1, "a.png", "text is ['red'], not text", "red")],
    ),
    "consent that is not text": (
        lambda folder: change(folder, 2, consent=True),
        [(3, "c c%20#.png", "consent is True, not text", "True")],
    ),
    "half a character": (
        lambda folder: change(folder, 0, text="\ud83d"),
        [(1, "a.png", "text holds half a character", "ud83d")],
    ),
    "an unknown split": (
        lambda folder: change(folder, 0, split="dev"),
        [(1, "a.png", "split is 'dev'; write train, validation, test", "dev")],
    ),
    "a row twice": (
        lambda folder: write(folder, [*ROWS, ROWS[0]]),
        [(4, "a.png", "listed again, as in row 1", "red hair")],
    ),
    "two captions for one image": (
        two_captions,
        [
            (1, "a.png", "rows 1 and 4 contradict each other; keep one", "red hair"),
            (4, "a.png", "rows 1 and 4 contradict each other; keep one", "blue hair"),
        ],
    ),
}


@pytest.mark.parametrize(("spoil", "faults"), FAULTS.values(), ids=FAULTS)
def test_a_row_that_cannot_be_pinned_is_set_aside_and_no_other(
    portraits: Path, tmp_path: Path, spoil: Callable[[Path], object], faults: list[tuple[int, str | None, str, str]]
) -> None:
    spoil(portraits)
    lines = sum(bool(line.strip()) for line in (portraits / "metadata.jsonl").read_bytes().split(b"\n"))
    taken = take(portraits)
    refused = pq.read_table(tmp_path / "snapshot" / "refused.parquet").to_pylist()
    assert [(row["row"], row["file_name"]) for row in refused] == [(number, name) for number, name, _, _ in faults]
    for row, (_, _, reason, value) in zip(refused, faults, strict=True):
        assert reason in row["reason"] and value in (row["value"] or "")
    kept = pq.read_table(tmp_path / "snapshot" / "manifest.parquet")["file_name"].to_pylist()
    assert (taken.rows, taken.refused, taken.rows + taken.refused) == (len(kept), len(faults), lines)
    spoiled = {number for number, _, _, _ in faults}
    good = {row["file_name"] for number, row in enumerate(ROWS, start=1) if number not in spoiled}
    assert good <= set(kept)


def test_bad_lines_among_many_good_ones(portraits: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{number}.png", "text": str(number)}) for number in range(1, 41)]
    for number in range(1, 41):
        shutil.copy(portraits / "a.png", portraits / f"{number}.png")
    lines[16] = lines[16][:-5]
    (portraits / "metadata.jsonl").write_text("\n".join(lines))
    taken = take(portraits)
    assert (taken.rows, taken.refused) == (39, 1)
    row = pq.read_table(tmp_path / "snapshot" / "refused.parquet").to_pylist()[0]
    assert row["row"] == 17 and "not JSON" in row["reason"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("portraits", "is relative; give an absolute path"),
        ("ftp://host/portraits", "pictures lie at file://, s3://, gs://, hf://"),
        ("gs://bucket/portraits", "cannot be read here: .*gcsfs"),
    ],
)
def test_places_that_are_not_read(source: str, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        open_source(DataSettings(source=source))


def test_an_image_that_cannot_be_read(portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tests' user may be root, who may read everything: so the error is made, where the file is read."""
    readable = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return readable(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert (take(portraits).rows, take(portraits).refused) == (2, 1)
    row = pq.read_table(tmp_path / "snapshot" / "refused.parquet").to_pylist()[0]
    assert row["file_name"] == "a.png" and "may not be read: " in row["reason"]


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"source": ""},
        {"source": "/data", "sources": "/data"},
        {"source": "/data", "validation_share": 1.0},
        {"source": "/data", "store": "copies"},
        {"source": "/data", "rights": {"licence": "CC0-1.0"}},
    ],
)
def test_settings_are_strict(section: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(section)


def test_the_step_leaves_its_record(portraits: Path, tmp_path: Path) -> None:
    run = run_context(tmp_path, "one").model_dump(exclude={"id"})
    output = Dataset(uri=str(tmp_path / "snapshot"))
    digest, rows = snapshot_data.python_func(run=run, job="one", data={"source": str(portraits)}, snapshot=output)
    record = read_records(run["records"], "one")["snapshot-data"]
    assert (record.status, record.outputs["snapshot"]) == ("complete", digest)
    assert record.inputs["metadata"] == digest_file(portraits / "metadata.jsonl")
    assert (rows, record.facts["rows"], record.facts["unlisted"], record.facts["refused"]) == (3, 3, 0, 0)
    assert record.outputs["refused"] == digest_file(tmp_path / "snapshot" / "refused.parquet")

    shutil.rmtree(portraits)
    with pytest.raises(SnapshotError):
        snapshot_data.python_func(run=run, job="one", data={"source": str(portraits)}, snapshot=output)
    assert "there is no folder" in str(read_records(run["records"], "one")["snapshot-data"].error)


def test_nothing_heavy_is_loaded(portraits: Path, tmp_path: Path) -> None:
    """A run with nothing new must end within seconds, and it always takes a snapshot."""
    settle()
    take_snapshot(DataSettings(source=str(portraits)), tmp_path / "first", tmp_path / "state")
    code = f"""if True:
        import sys
        from pathlib import Path
        from components.snapshot_data.settings import DataSettings
        from components.snapshot_data.snapshot import take_snapshot
        settings = DataSettings(source={str(portraits)!r})
        taken = take_snapshot(settings, Path({str(tmp_path / "snapshot")!r}), Path({str(tmp_path / "state")!r}))
        heavy = {{"pandas", "PIL", "scipy", "torch", "mlflow", "great_expectations", "kfp", "s3fs"}}
        print(taken.rows, taken.read, sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("3 0 []", 0), done.stderr


def settle() -> None:
    """Files younger than that are read again: the clocks of file systems tick slowly."""
    time.sleep(2 * SETTLED / 1e9)
