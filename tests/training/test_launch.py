"""Training that cannot go on stops, says why, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from lineage.digests import digest_file
from tests.training.conftest import World
from tests.training.tiny import save_bundle, save_teacher
from training.errors import TrainingError
from training.features_info import read_info, write_info
from training.launch import fine_tune

LAUNCH = """
import sys
from pathlib import Path
from training.launch import fine_tune
from training.settings import TrainingSettings
settings = TrainingSettings.model_validate_json(sys.argv[1])
fine_tune(settings, Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
"""


def test_a_loss_that_is_not_finite_stops_training_at_its_step(world: World, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(world.features, features)
    shard = load_file(features / "latents-00000.safetensors")
    shard["mean"] = torch.full_like(shard["mean"], torch.nan)
    save_file(shard, features / "latents-00000.safetensors")
    info = read_info(features)
    poisoned = info.parts["latents"][0].model_copy(
        update={"digest": digest_file(features / "latents-00000.safetensors")}
    )
    write_info(features, info.model_copy(update={"parts": info.parts | {"latents": [poisoned]}}))
    with pytest.raises(TrainingError, match=r"the total loss is nan at step 1 of 5; nothing is exported"):
        fine_tune(world.settings(), features, tmp_path / "candidate", tmp_path / "curves.jsonl")
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_launcher_leaves_no_process(world: World, tmp_path: Path, how: signal.Signals) -> None:
    settings = world.settings(steps=100_000, log_every=1)
    candidate, curves = tmp_path / "candidate", tmp_path / "curves.jsonl"
    arguments = [settings.model_dump_json(), str(world.features), str(candidate), str(curves)]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (curves.exists() and curves.read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, "training did not begin"
        time.sleep(0.2)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len([p for p in family if "training.fine_tune" in " ".join(p.cmdline())]) >= 2
    os.kill(launcher.pid, how)
    assert launcher.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert not candidate.exists()


def test_features_of_another_base_model_are_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(base_model=save_bundle(tmp_path / "other", seed=9))
    with pytest.raises(TrainingError, match="other encoders"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_features_of_another_teacher_are_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(teacher=save_teacher(tmp_path / "other", seed=9))
    with pytest.raises(TrainingError, match="another teacher"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_a_bundle_of_another_kind_is_refused(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtPipeline"}))
    with pytest.raises(
        TrainingError,
        match="PixArtPipeline; the families trained here are Stable",
    ):
        fine_tune(world.settings(base_model=base), world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")


def test_a_process_that_fails_is_reported_with_its_own_error(world: World, tmp_path: Path) -> None:
    settings = world.settings(supervision=world.settings().supervision.model_copy(update={"tap": 7}))
    with pytest.raises(TrainingError, match="joint blocks 0 to 2"):
        fine_tune(settings, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")
