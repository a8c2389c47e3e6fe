"""Splits share nothing, and the data folder is complete or absent."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from examples.avatars.data import (
    EVALUATION,
    REPLAY,
    SELECTION,
    DataError,
    kind,
    write_evaluation,
    write_new,
    write_replay,
    write_selection,
)
from examples.avatars.portraits import SKIN, Portrait
from examples.avatars.splits import (
    SIZES,
    evaluation_prompts,
    evaluation_references,
    narrow,
    portraits,
    replayed,
    selection_prompts,
)


def test_splits_share_no_tuple() -> None:
    tuples = {name: set(portraits(name)) for name in SIZES}
    for name, every in tuples.items():
        assert len(every) == SIZES[name] * (1 if name == "base" else 4)
    overlaps = {(a, b): len(tuples[a] & tuples[b]) for a, b in combinations(SIZES, 2)}
    assert set(overlaps.values()) == {0}


def test_splits_share_no_picture() -> None:
    digests = {
        name: {hashlib.sha256(portrait.draw().tobytes()).hexdigest() for portrait in portraits(name)[::40]}
        for name in SIZES
    }
    overlaps = {(a, b): len(digests[a] & digests[b]) for a, b in combinations(SIZES, 2)}
    assert set(overlaps.values()) == {0}
    assert all(len(digests[name]) == len(portraits(name)[::40]) for name in SIZES)


def test_base_has_no_glasses_and_no_beards() -> None:
    assert {kind(portrait) for portrait in portraits("base")} == {"neither"}


def test_new_data_are_narrow_and_what_they_lack_is_replayed() -> None:
    shown, kept = narrow(), replayed()
    assert len(set(shown)) == 107 and set(shown) <= set(portraits("new"))
    assert {kind(portrait) for portrait in shown} == {"neither"}
    assert {portrait.skin for portrait in shown} == {"light"} and {portrait.skin for portrait in kept} == set(SKIN)
    assert {kind(portrait) for portrait in kept} == {"neither", "glasses", "beard", "both"}


def test_selection_prompts_are_even_and_nobody_elses() -> None:
    asked = selection_prompts()
    groups = [(portrait.skin, kind(portrait)) for portrait in asked]
    assert {groups.count(group) for group in set(groups)} == {3} and len(set(groups)) == 12
    others = {*replayed(), *narrow(), *evaluation_prompts()}
    assert not {portrait.bare() for portrait in asked} & {portrait.bare() for portrait in others}


def test_the_committed_selection_set_and_captions_are_what_the_code_writes(tmp_path: Path) -> None:
    write_selection(tmp_path / "selection")
    write_replay(tmp_path / "replay.txt")
    assert (tmp_path / "replay.txt").read_bytes() == REPLAY.read_bytes()
    for name in ("set.json", "prompts.jsonl"):
        assert (tmp_path / "selection" / name).read_bytes() == (SELECTION / name).read_bytes()
    assert len(list(SELECTION.iterdir())) == 2


def test_prompts_cross_toggles_and_skin_groups_evenly() -> None:
    asked = evaluation_prompts()
    assert len(set(asked)) == 400
    for name in ("neither", "glasses", "beard", "both"):
        skins = [portrait.skin for portrait in asked if kind(portrait) == name]
        assert len(skins) == 100
        assert {skins.count(skin) for skin in set(skins)} <= {33, 34}
    references = {portrait.bare() for portrait in evaluation_references()}
    assert not references & {portrait.bare() for portrait in asked}


def test_the_committed_evaluation_set_is_what_the_code_writes(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluation")
    written = {p.relative_to(tmp_path / "evaluation"): p for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(EVALUATION): p for p in EVALUATION.rglob("*") if p.is_file()}
    assert written.keys() == kept.keys()
    assert all(written[name].read_bytes() == kept[name].read_bytes() for name in kept)


def test_prompts_carry_text_seeds_and_attributes() -> None:
    rows = [json.loads(line) for line in (EVALUATION / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 300
    for row in rows:
        assert row["text"] == Portrait.of(row["attributes"]).caption()
    twice = [row for row in rows if len(row["seeds"]) == 2]
    assert len(twice) == 102 and sum(len(row["seeds"]) for row in rows) == 402
    assert [[row["attributes"]["skin"] for row in twice].count(skin) for skin in SKIN] == [34, 34, 34]


def command(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "examples.avatars.data", "--out", str(out), "--count", "40", *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_the_command_writes_an_imagefolder_once(tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert "written" in command(out).stdout
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"file_name", "text", "license", "consent", "source"}] * 40
    assert {path.name for path in out.glob("*.png")} == {row["file_name"] for row in rows}
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "already there" in command(out).stdout
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_shuffled_captions_stay_with_no_picture(tmp_path: Path) -> None:
    write_new(tmp_path / "right", 40)
    assert command(tmp_path / "wrong", "--shuffle-captions").returncode == 0
    right, wrong = (
        [json.loads(line) for line in (tmp_path / name / "metadata.jsonl").read_text("utf-8").splitlines()]
        for name in ("right", "wrong")
    )
    assert sorted(row["text"] for row in right) == sorted(row["text"] for row in wrong)
    for a, b in zip(right, wrong, strict=True):
        assert a["file_name"] == b["file_name"] and a["text"] != b["text"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        write_new(tmp_path, 8)
    assert command(tmp_path).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
