"""Sources other than an imagefolder, copies, what an unchanged source costs, and the split."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlcroissant as mlc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.snapshot_data import snapshot as snapshot_module
from components.snapshot_data.duplicates import near_duplicates, perceptual_hash
from components.snapshot_data.folder import SETTLED, SnapshotError
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import Snapshot, take_snapshot
from lineage.pictures import PictureError, manifest_rows, read_picture

RIGHTS = {"license": "CC0-1.0", "consent": "drawn", "source": "test"}


def picture(seed: int, size: int = 32, kind: str = "PNG") -> bytes:
    """Noise at 8 x 8, enlarged: every seed another picture, whatever its size or format."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def settle() -> None:
    """Files younger than that are read again: the clocks of file systems tick slowly."""
    time.sleep(2 * SETTLED / 1e9)


class World:
    """A source, and snapshots of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source"
        self.source.mkdir()

    def take(self, state: bool = False, **settings: Any) -> Snapshot:
        asked = DataSettings.model_validate({"source": str(self.source), **settings})
        return take_snapshot(asked, self.folder / "snapshot", self.folder / "state" if state else None)

    def manifest(self) -> list[dict[str, Any]]:
        return list(manifest_rows(self.folder / "snapshot" / "manifest.parquet"))

    def refused(self) -> list[dict[str, Any]]:
        return list(manifest_rows(self.folder / "snapshot" / "refused.parquet"))

    def imagefolder(self, seeds: range, **told: Any) -> None:
        for seed in seeds:
            (self.source / f"{seed:03}.png").write_bytes(picture(seed))
        self.write([{"file_name": f"{seed:03}.png", "text": f"number {seed}", **told} for seed in seeds])

    def write(self, rows: list[dict[str, Any]]) -> None:
        (self.source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def parquet(self, seeds: range, name: str = "part.parquet", **columns: list[Any]) -> None:
        cells = [{"bytes": picture(seed), "path": "x.png"} for seed in seeds]
        table = {"image": cells, "text": [f"number {seed}" for seed in seeds], **columns}
        pq.write_table(pa.table(table), self.source / name, row_group_size=3)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# Parquet files with images


def test_images_inside_parquet_are_pinned_and_read_where_they_are(world: World) -> None:
    world.parquet(range(8), "a.parquet")
    world.parquet(range(8, 10), "more of it.parquet")
    assert (world.take().rows, world.refused()) == (10, [])
    rows = world.manifest()
    assert [row["file_name"] for row in rows[-2:]] == [f"more of it.parquet/{row:08}" for row in range(2)]
    assert [read_picture(row) for row in rows] == [picture(seed) for seed in range(10)]


def test_one_parquet_file_is_a_source_and_plain_bytes_will_do(world: World) -> None:
    table = {"file_name": ["b.png", "a.png"], "picture": [picture(1), picture(2)], "license": ["CC0-1.0", None]}
    pq.write_table(pa.table(table), world.source / "all.parquet")
    world.take(source=str(world.source / "all.parquet"), rights={"license": "MIT"})
    told = [(row["file_name"], row["text"], row["license"]) for row in world.manifest()]
    assert told == [("a.png", None, "MIT"), ("b.png", None, "CC0-1.0")]


def test_bad_rows_of_parquet_are_set_aside(world: World) -> None:
    names = ["good.png", "../climbs.png", "empty.png", "/absolute.png"]
    cells = [picture(1), picture(2), None, picture(4)]
    pq.write_table(pa.table({"file_name": names, "image": cells}), world.source / "a.parquet")
    taken = world.take()
    assert (taken.rows, taken.refused) == (1, 3)
    assert [(row["row"], row["file_name"]) for row in world.refused()] == [(2, names[1]), (3, names[2]), (4, names[3])]
    assert "no image in column image" in world.refused()[1]["reason"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "has no column of bytes among text; one column must hold the images"),
        ({"image": [b"a"], "mask": [b"b"]}, r"has 2 columns of bytes \(image, mask\)"),
    ],
)
def test_parquet_without_one_column_of_images_is_refused(
    world: World, columns: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table(columns), world.source / "a.parquet")
    with pytest.raises(SnapshotError, match=message):
        world.take()


def test_truncated_parquet_is_refused(world: World) -> None:
    world.parquet(range(4))
    path = world.source / "part.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SnapshotError, match=r"part\.parquet is not readable as parquet"):
        world.take()


def test_a_parquet_file_that_changed_is_found_out_when_a_row_is_read(world: World) -> None:
    world.parquet(range(4))
    world.take()
    row = world.manifest()[2]
    assert read_picture(row) == picture(2)
    world.parquet(range(10, 14))
    with pytest.raises(PictureError, match=r"part\.parquet/00000002 at parquet\+file://.* has changed"):
        read_picture(row)
    (world.source / "part.parquet").unlink()
    with pytest.raises(PictureError, match="nothing is at parquet"):
        read_picture(row)


# A folder with captions


def test_captions_beside_images(world: World) -> None:
    (world.source / "10_portraits").mkdir()
    for name, caption in (("a", "red hair\n"), ("b", "“schön”"), ("c", None)):
        (world.source / "10_portraits" / f"{name}.png").write_bytes(picture(ord(name)))
        if caption:
            (world.source / "10_portraits" / f"{name}.txt").write_text(caption)
    taken = world.take(rights=RIGHTS)
    told = [(row["file_name"], row["text"], row["license"]) for row in world.manifest()]
    assert told == [
        (f"10_portraits/{n}.png", t, "CC0-1.0") for n, t in (("a", "red hair"), ("b", "“schön”"), ("c", None))
    ]
    assert (taken.rows, taken.refused, taken.unlisted) == (3, 0, 0)


def test_a_caption_that_is_not_text_and_one_behind_a_link(world: World, tmp_path: Path) -> None:
    for name in "abc":
        (world.source / f"{name}.png").write_bytes(picture(ord(name)))
    (world.source / "a.txt").write_bytes(b"\xff\xfe")
    (world.source / "b.txt").write_text("fine")
    (tmp_path / "secret").write_text("secret")
    (world.source / "c.txt").symlink_to(tmp_path / "secret")
    world.take()
    assert [row["reason"] for row in world.refused()] == ["a.txt is not UTF-8 (byte 0); write it as UTF-8"]
    assert {row["file_name"]: row["text"] for row in world.manifest()} == {"b.png": "fine", "c.png": None}


# Again


def test_only_new_and_changed_files_are_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.imagefolder(range(6))
    settle()
    first = world.take(state=True)
    world.imagefolder(range(7))
    (world.source / "005.png").write_bytes(picture(50))
    settle()
    before = world.take(state=True)
    assert (first.read, before.rows) == (6, 7)

    read: list[str] = []
    really = snapshot_module.read_bytes
    monkeypatch.setattr(snapshot_module, "read_bytes", lambda uri: read.append(Path(uri).name) or really(uri))
    (world.source / "003.png").write_bytes(picture(30))
    (world.source / "007.png").write_bytes(picture(7))
    world.write([{"file_name": f"{seed:03}.png", "text": "another"} for seed in range(8)])
    again = world.take(state=True)
    assert (again.read, sorted(read)) == (2, ["003.png", "007.png", "metadata.jsonl"])
    assert again.digest == world.take().digest, "the same as without what was kept"


def test_nothing_changed_nothing_read(world: World) -> None:
    world.imagefolder(range(5))
    settle()
    first = world.take(state=True)
    shutil.rmtree(world.folder / "snapshot")
    again = world.take(state=True)
    assert (first.read, again.read, again.digest) == (5, 0, first.digest)
    assert len(world.manifest()) == 5


def test_parquet_that_did_not_change_is_not_read_again(world: World) -> None:
    world.parquet(range(5), "a.parquet")
    world.parquet(range(5, 8), "b.parquet")
    settle()
    first = world.take(state=True)
    world.parquet(range(5, 9), "b.parquet")
    again = world.take(state=True)
    assert (first.read, again.read, again.rows) == (8, 4, 9)
    assert again.digest == world.take().digest


def test_a_change_that_hides_its_time_and_size_is_seen(world: World) -> None:
    world.imagefolder(range(3))
    path = world.source / "001.png"
    old = path.stat()
    settle()
    before = world.take(state=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    settle()
    assert world.take(state=True).digest != before.digest


def test_a_file_that_is_too_young_is_not_trusted(world: World) -> None:
    world.imagefolder(range(2))
    now = time.time_ns()
    for path in world.source.iterdir():
        os.utime(path, ns=(now + 10**12, now + 10**12))
    assert [world.take(state=True).read for _ in range(2)] == [2, 2]


@pytest.mark.parametrize(
    "name", ["files/files.parquet", "files/index.json", "snapshot/manifest.parquet", "snapshot/index.json"]
)
def test_what_was_kept_and_then_damaged_is_not_used(world: World, name: str) -> None:
    world.imagefolder(range(3))
    settle()
    before = world.take(state=True)
    (kept,) = (world.folder / "state" / "data").iterdir()
    (kept / name).write_bytes(b"damaged")
    assert world.take(state=True).digest == before.digest
    assert len(world.manifest()) == 3


def test_another_question_gets_another_answer(world: World) -> None:
    world.imagefolder(range(20))
    settle()
    world.take(state=True)
    halved = world.take(state=True, validation_share=0.5)
    assert set(halved.splits) == {"train", "validation"} and halved.read == 0


# Copies


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_copies_outlive_the_source(world: World, kind: str) -> None:
    getattr(world, kind)(range(4))
    assert world.take(copy=True, store=str(world.folder / "copies")).digest == world.take().digest
    world.take(copy=True, store=str(world.folder / "copies"))
    shutil.rmtree(world.source)
    rows = world.manifest()
    assert sorted(read_picture(row) for row in rows) == sorted(picture(seed) for seed in range(4))
    names = {path.name for path in (world.folder / "copies").rglob("*") if path.is_file()}
    assert names == {row["sha256"].removeprefix("sha256:") for row in rows}


def test_a_lost_copy_is_made_again(world: World) -> None:
    world.imagefolder(range(3))
    settle()
    world.take(state=True, copy=True)
    Path(world.manifest()[1]["uri"].removeprefix("file://")).unlink()
    assert world.take(state=True, copy=True).read == 1
    assert [read_picture(row) for row in world.manifest()] == [picture(seed) for seed in range(3)]


def test_copies_need_a_place(world: World) -> None:
    world.imagefolder(range(1))
    with pytest.raises(SnapshotError, match=r"there is no folder for copies; set data\.store"):
        world.take(copy=True)


# Croissant


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_the_snapshot_describes_itself_in_croissant(world: World, kind: str) -> None:
    getattr(world, kind)(range(4))
    taken = world.take(rights=RIGHTS)
    dataset = mlc.Dataset(jsonld=str(world.folder / "snapshot" / "croissant.json"))
    assert not dataset.metadata.issues.errors
    assert dataset.metadata.cite_as == taken.digest
    rows = list(dataset.records("rows"))
    assert [row["rows/text"].decode() for row in rows] == [f"number {seed}" for seed in range(4)]
    assert {row["rows/license"] for row in rows} == {b"CC0-1.0"}


# The split


def test_near_duplicates_stay_on_one_side(world: World) -> None:
    rows = []
    for seed in range(60):
        for name, content in (("", picture(seed)), ("-large", picture(seed, 64)), ("-x", picture(seed, 48, "JPEG"))):
            (world.source / f"{seed}{name}.png").write_bytes(content)
            rows.append({"file_name": f"{seed}{name}.png"})
    world.write(rows)
    taken = world.take(validation_share=0.3)
    sides: dict[str, set[str]] = {}
    for row in world.manifest():
        sides.setdefault(row["file_name"].removesuffix(".png").partition("-")[0], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert 0.1 < taken.splits["validation"] / taken.rows < 0.5
    world.write(rows[::-1])
    assert world.take(validation_share=0.3).digest == taken.digest


def test_a_split_that_separates_near_duplicates_loses_the_leak(world: World) -> None:
    world.imagefolder(range(3))
    (world.source / "copy.jpg").write_bytes(picture(1, 64, "JPEG"))
    rows = [{"file_name": f"{seed:03}.png", "split": "train"} for seed in range(3)]
    world.write([*rows, {"file_name": "copy.jpg", "split": "test"}])
    taken = world.take()
    assert taken.splits == {"train": 2, "test": 1} and taken.rows + taken.refused == 4
    (leak,) = world.refused()
    assert (leak["row"], leak["file_name"]) == (2, "001.png")
    assert "near-duplicate of copy.jpg, which is in split test" in leak["reason"]


def test_a_row_without_a_split_follows_its_near_duplicate(world: World) -> None:
    world.imagefolder(range(2))
    (world.source / "copy.jpg").write_bytes(picture(1, 64, "JPEG"))
    world.write([{"file_name": "000.png"}, {"file_name": "001.png"}, {"file_name": "copy.jpg", "split": "test"}])
    world.take()
    splits = {row["file_name"]: row["split"] for row in world.manifest()}
    assert splits == {"000.png": "train", "001.png": "test", "copy.jpg": "test"}


def test_what_does_not_decode_has_no_perceptual_hash_and_is_nobodys_duplicate(world: World) -> None:
    world.imagefolder(range(2))
    for name in ("x.png", "y.png"):
        (world.source / name).write_bytes(b"no image")
    world.write([{"file_name": name} for name in ("000.png", "x.png", "y.png")])
    world.take(validation_share=0.5)
    assert [row["phash"] is None for row in world.manifest()] == [False, True, True]
    assert perceptual_hash(b"") is None


@pytest.mark.parametrize("bits", [0, 1, 3, 8])
def test_groups_are_those_of_comparing_every_pair(bits: int) -> None:
    draw = np.random.default_rng(bits)
    hashes = draw.integers(0, 2**64, 40, dtype=np.uint64)
    for _ in range(4):  # families whose members differ in a few bits
        flips = (np.uint64(1) << draw.integers(0, 64, len(hashes), dtype=np.uint64)) * draw.integers(
            0, 2, len(hashes)
        ).astype(np.uint64)
        hashes = np.unique(np.concatenate([hashes, hashes ^ flips]))
    hashes = np.concatenate([hashes, hashes[:5]])
    expected = np.arange(len(hashes))
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= bits
    for _ in range(len(hashes)):
        expected = np.where(near, expected[None, :], len(hashes)).min(axis=1)
    found = near_duplicates(hashes, bits)
    assert np.array_equal(found[:, None] == found[None, :], expected[:, None] == expected[None, :])
