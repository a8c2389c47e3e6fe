"""Samples are drawn once, taken up where they were cut off, and reused only where everything agrees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from components.evaluate.evaluation_set import EvaluationError, read_evaluation_set
from components.evaluate.sampling import Terms, collect, draw
from components.evaluate.settings import DrawingSettings
from lineage.digests import code_digest


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def test_shards_draw_what_one_task_draws(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    evaluation_set = read_evaluation_set(str(small_set))
    whole, terms = draw(models["candidate"], evaluation_set, 2, tmp_path / "one", "candidate")
    for shard in (2, 0, 1):
        shared, same = draw(models["candidate"], evaluation_set, 2, tmp_path / "many", "candidate", shard, 3)
        assert (len(pictures(shared)), same) == ({2: 2, 0: 4, 1: 6}[shard], terms)
    assert pictures(shared) == pictures(whole)
    files = collect(shared, evaluation_set, 2, tmp_path / "target")
    assert [file.name for file in files] == [f"{p.id}-{seed}.png" for p, seed in evaluation_set.samples]
    assert pictures(tmp_path / "target") == pictures(whole)
    assert {file.suffix for file in (tmp_path / "target").iterdir()} == {".png"}


def test_what_is_drawn_is_not_drawn_again(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    evaluation_set = read_evaluation_set(str(small_set))
    folder, _ = draw(models["candidate"], evaluation_set, 2, tmp_path, "candidate")
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.png")}
    changed, lost = sorted(before)[0], sorted(before)[3]
    good = pictures(folder)
    (folder / changed).write_bytes(good[lost])
    (folder / lost).unlink()
    draw(models["candidate"], evaluation_set, 2, tmp_path, "candidate")
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.png")}
    assert pictures(folder) == good, "a picture that was changed or lost is drawn again, with the same bits"
    # Two of three batches had something wrong; the third is left alone.
    assert sum(before[name] == after[name] for name in before) == 2


@pytest.mark.parametrize("name", [field for field in asdict(Terms("", "", 1, "", "", "", ""))])
def test_samples_under_other_terms_are_not_reused(name: str, tmp_path: Path) -> None:
    terms = Terms("w", "e", 4, "c", "p", "plain", "m")
    other = replace(terms, **{name: 5 if name == "batch_size" else "other"})
    assert terms.folder(tmp_path) != other.folder(tmp_path)


def test_terms_name_what_is_there(models: dict[str, Path], small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation_set = read_evaluation_set(str(small_set))
    here = Terms.of(models["candidate"], evaluation_set, 4)
    assert here.weights != Terms.of(models["incumbent"], evaluation_set, 4).weights
    assert (
        here.evaluation_set != Terms.of(models["candidate"], read_evaluation_set(str(small_set), 2), 4).evaluation_set
    )
    assert here.code == code_digest("components.evaluate", "training.families"), "all that draws"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert here.machine != Terms.of(models["candidate"], evaluation_set, 4).machine
    finally:
        torch.set_num_threads(threads)


def test_how_a_model_is_loaded_decides_what_it_draws(models: dict[str, Path], small_set: Path, tmp_path: Path) -> None:
    evaluation_set, half = read_evaluation_set(str(small_set)), DrawingSettings(precision="bfloat16", device="cpu")
    whole, full = draw(models["candidate"], evaluation_set, 6, tmp_path, "candidate")
    halved, terms = draw(models["candidate"], evaluation_set, 6, tmp_path, "candidate", how=half)
    assert full.loaded != terms.loaded and whole != halved
    assert pictures(whole).keys() == pictures(halved).keys() and pictures(whole) != pictures(halved)


def test_a_kill_leaves_whole_pictures_and_the_rest_is_drawn_later(
    models: dict[str, Path], small_set: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from components.evaluate.evaluation_set import read_evaluation_set\n"
        "from components.evaluate.sampling import draw\n"
        "draw(Path(sys.argv[1]), read_evaluation_set(sys.argv[2]), 1, Path(sys.argv[3]), 'candidate')\n"
    )
    arguments = [sys.executable, "-c", program, str(models["candidate"]), str(small_set), str(tmp_path / "cut")]
    process = subprocess.Popen(arguments, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cut/*/*.png"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    evaluation_set = read_evaluation_set(str(small_set))
    cut, _ = draw(models["candidate"], evaluation_set, 1, tmp_path / "cut", "candidate")
    whole, _ = draw(models["candidate"], evaluation_set, 1, tmp_path / "whole", "candidate")
    assert cut.name == whole.name, "the killed process and this one draw under the same terms"
    assert pictures(cut) == pictures(whole) and len(pictures(cut)) == 6


def test_samples_that_change_while_they_are_read_are_refused(
    models: dict[str, Path], small_set: Path, tmp_path: Path
) -> None:
    evaluation_set = read_evaluation_set(str(small_set))
    folder, _ = draw(models["candidate"], evaluation_set, 4, tmp_path / "store", "candidate")
    next(folder.glob("*.png")).write_bytes(b"something else")
    with pytest.raises(EvaluationError, match="changed while they were read"):
        collect(folder, evaluation_set, 4, tmp_path / "target")


def test_a_folder_that_is_no_model_is_named(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(EvaluationError, match="the incumbent: no diffusers bundle at"):
        draw(tmp_path / "model", read_evaluation_set(str(small_set)), 4, tmp_path / "store", "incumbent")
