"""The candidate is a plain SD3 bundle, the same one each time, with nothing of ours in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lineage.digests import digest_path
from tests.training.conftest import Trained, World
from tests.training.tiny import NO_T5
from training.errors import TrainingError
from training.families import family_of
from training.launch.launch import TrainingRecord, fine_tune
from training.train.curves import draw_curves, read_points
from training.train.export import export_candidate

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"

DRAW = """
import hashlib, sys, torch
try:
    import training
except ImportError:
    pass
else:
    sys.exit("our code is importable")
from diffusers import StableDiffusion3Pipeline
torch.set_num_threads(1)
pipeline = StableDiffusion3Pipeline.from_pretrained(sys.argv[1], text_encoder_3=None, tokenizer_3=None)
picture = pipeline("a portrait", num_inference_steps=2, max_sequence_length=1,
                   generator=torch.Generator().manual_seed(0), output_type="np").images
print("picture", hashlib.sha256(picture.tobytes()).hexdigest())
"""


def test_the_same_seed_gives_the_same_candidate(world: World, trained: Trained, tmp_path: Path) -> None:
    again = fine_tune(world.settings(), world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")
    assert again.candidate == trained.record.candidate == digest_path(tmp_path / "candidate")
    assert again.candidate != digest_path(world.base)


def test_the_number_of_processes_changes_rounding_only(world: World, trained: Trained, tmp_path: Path) -> None:
    alone = world.settings(processes=1)
    fine_tune(alone, world.features, tmp_path / "candidate", tmp_path / "curves.jsonl")
    for one, two in zip(read_points(tmp_path / "curves.jsonl"), read_points(trained.curves), strict=True):
        losses = one.metrics()
        losses.pop("samples_per_second")
        assert two.metrics() == pytest.approx(two.metrics() | losses, rel=1e-4, abs=1e-7), f"step {one.step}"


def test_the_export_has_the_layout_of_a_plain_one(world: World, trained: Trained, tmp_path: Path) -> None:
    family_of(world.base).load_transformer().save_pretrained(tmp_path / "transformer")
    exported, plain = load_file(trained.candidate / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert {k: (t.dtype, t.shape) for k, t in exported.items()} == {k: (t.dtype, t.shape) for k, t in plain.items()}
    moved = [name for name, tensor in exported.items() if not torch.equal(tensor, plain[name])]
    assert len(moved) > len(plain) / 2
    with safe_open(trained.candidate / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_all_else_is_the_base_model(world: World, trained: Trained) -> None:
    def files(folder: Path) -> dict[str, str]:
        return {str(f.relative_to(folder)): digest_path(f) for f in folder.rglob("*") if f.is_file()}

    base, candidate = files(world.base), files(trained.candidate)
    assert base.keys() == candidate.keys()
    assert {name for name in base if base[name] != candidate[name]} == {str(WEIGHTS)}


def test_it_loads_and_draws_the_same_where_none_of_our_code_is(trained: Trained, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    import training.train.loop  # noqa: F401 (the supervision code is loaded here, and not over there)

    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    hide = f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; {DRAW!r}"
    code = hide.replace(repr(DRAW), f"exec({DRAW!r})")
    elsewhere = subprocess.run(
        [sys.executable, "-I", "-c", code, str(trained.candidate)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr[-2000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = StableDiffusion3Pipeline.from_pretrained(trained.candidate, **NO_T5)
    picture = pipeline(
        "a portrait",
        num_inference_steps=2,
        max_sequence_length=1,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    torch.set_num_threads(threads)
    import hashlib

    assert f"picture {hashlib.sha256(picture.tobytes()).hexdigest()}" in elsewhere.stdout


def test_the_record_lies_beside_the_candidate(trained: Trained) -> None:
    written = TrainingRecord.model_validate_json(trained.candidate.with_name("training.json").read_text())
    assert written == trained.record
    assert written.steps == 5 and written.processes == 2 and written.threads_per_process == 1
    assert len(written.peak_memory_bytes) == 2 and written.seconds["all"] > written.seconds["training"] > 0


def test_curves_tell_the_parts_of_the_loss(trained: Trained) -> None:
    points = read_points(trained.curves)
    assert [point.step for point in points] == [2, 4, 5]
    assert points[0].loss_local is not None and points[0].loss > points[0].loss_flow
    assert points[-1].supervision_weight == 0 and points[-1].loss_local is None
    assert all(point.gradient_norm > 0 for point in points)
    page = draw_curves(points, "a <run>")
    assert page.count("<polyline") == len(type(points[0]).model_fields) - 1 and "a &lt;run&gt;" in page


def test_a_taken_place_is_refused(world: World, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="never overwritten"):
        fine_tune(world.settings(), world.features, trained.candidate, tmp_path / "curves.jsonl")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda w: w | {"proj_out.bias": torch.full_like(w["proj_out.bias"], torch.nan)}, "not finite"),
        (lambda w: w | {"proj_out.bias": torch.zeros(3)}, "trained as"),
        (lambda w: w | {"projector.0.weight": torch.zeros(3)}, "the base transformer has no projector"),
    ],
)
def test_broken_weights_are_not_exported(world: World, tmp_path: Path, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    weights = {name: p.detach() for name, p in family_of(world.base).load_transformer().named_parameters()}
    with pytest.raises(TrainingError, match=message):
        export_candidate(world.base, break_it(weights), tmp_path / "candidate")
    assert not (tmp_path / "candidate").exists()
