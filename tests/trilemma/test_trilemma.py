"""The trilemma experiment's own machinery, held to the product's: what it trains, draws and scores is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import trilemma
from benchmarks.trilemma import figures, pool, stack
from benchmarks.trilemma.arms import ABLATIONS, LOOKS, MAIN, RATES, Job, jobs
from benchmarks.trilemma.base import clean_model, ship
from benchmarks.trilemma.judge import PANELS, Decoder, Judge, noises, sample
from benchmarks.trilemma.prepare import Frozen, shapes
from benchmarks.trilemma.report import write_lines, write_table
from benchmarks.trilemma.runs import matched_strength
from benchmarks.trilemma.text import TextTower
from benchmarks.trilemma.worlds import MODELS, WORLDS, narrow, prompts, spoil
from examples.avatars.scorers import Aesthetics, Alignment, Realism
from examples.avatars.splits import replayed

CPU = torch.device("cpu")
SHIPPED = MODELS / "base" / "transformer" / "diffusion_pytorch_model.safetensors"
CAPTIONS = ["a portrait, light skin, red bob hair, smiling mouth, blue shirt, mint background", "a portrait", ""]


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return Frozen()


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return stack.from_diffusers(load_file(SHIPPED))


def test_what_is_shipped_is_what_was_trained(base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The way back to diffusers' names loses nothing, and the sums follow."""
    models = shutil.copytree(MODELS, tmp_path / "models")
    shutil.copyfile(Path(str(trilemma.__file__)).with_name("clean.safetensors"), models / SHIPPED.relative_to(MODELS))
    save_file({name: value[0].half() for name, value in base.items()}, tmp_path / "base1.safetensors")
    ship(tmp_path, models)
    shipped, wanted = (load_file(folder / SHIPPED.relative_to(MODELS)) for folder in (models, MODELS))
    assert shipped.keys() == wanted.keys()
    assert all(torch.equal(shipped[name], wanted[name]) and shipped[name].dtype == torch.float16 for name in wanted)
    assert (models / "SHA256SUMS").read_text() == (MODELS / "SHA256SUMS").read_text()
    assert not torch.equal(clean_model(CPU)["patch.w"], base["patch.w"])


def test_a_stack_trains_as_diffusers_model_does(frozen: Frozen, base: dict[str, torch.Tensor]) -> None:
    """Velocities, gradients through clipping, AdamW with decay of matrices only: equal after three steps."""
    net = frozen.family.load_transformer().eval()
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    theirs = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], lr=1e-3, fused=True)
    mine = stack.Parameters({n: v.expand(2, *v.shape[1:]) for n, v in base.items() if n != "positions"})
    optimizer = stack.optimizer([mine], 1e-3)
    read = frozen.text(CAPTIONS)
    chance = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, sigma = torch.randn(3, 8, 16, 16, generator=chance), torch.rand(3, generator=chance)
        wanted = net(
            hidden_states=x, encoder_hidden_states=read["embeddings"], pooled_projections=read["pooled"],
            timestep=sigma * 1000, return_dict=False,
        )[0]  # fmt: skip
        both = [t.expand(2, *t.shape) for t in (x, sigma, read["embeddings"], read["pooled"])]
        got, _ = stack.predict(mine.views() | {"positions": base["positions"]}, *both)
        assert (got - wanted).abs().max() < 2e-4 * wanted.abs().max()
        theirs.zero_grad()
        wanted.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        theirs.step()
        optimizer.zero_grad()
        got.square().mean((1, 2, 3, 4)).sum().backward()
        mine.clip(1.0)
        optimizer.step()
    trained = stack.from_diffusers(net.state_dict())
    moved = max(float((trained[n] - base[n]).abs().max()) for n in mine.shapes)
    for name, value in mine.views().items():
        apart = (value[1] - trained[name][0]).abs() / moved
        # Where a gradient is next to zero AdamW makes a step of its rounding, which is another one on another CPU.
        assert (apart > 0.01).float().mean() < 1e-4 and apart.max() < 0.2, name


def test_text_is_read_as_the_pipeline_reads_it(frozen: Frozen) -> None:
    text, pooled = TextTower(CPU)(frozen.ids(CAPTIONS))
    wanted = frozen.text(CAPTIONS)
    assert torch.allclose(text, wanted["embeddings"], atol=1e-5)
    assert torch.allclose(pooled, wanted["pooled"], atol=1e-5)


def test_pictures_are_the_pipelines(frozen: Frozen, base: dict[str, torch.Tensor]) -> None:
    """Sampling and decoding, against the product's own `Drawer`."""
    from safetensors.torch import load_file

    from training.families.drawing import Drawer

    text, pooled = TextTower(CPU)(frozen.ids([*CAPTIONS[:2], ""]))
    nothing = (text[2:], pooled[2:])
    latents = sample(base, noises([3, 4]).unsqueeze(0), text[:2], pooled[:2], nothing)
    decoder = Decoder(load_file(MODELS / "base" / "vae" / "diffusion_pytorch_model.safetensors"), CPU)
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "height": 64, "width": 64, "max_sequence_length": 1}
    wanted = Drawer(MODELS / "base").draw(CAPTIONS[:2], [3, 4], settings)
    for mine, theirs in zip(decoder(latents[0]), wanted, strict=True):
        off = np.abs(mine.permute(1, 2, 0).numpy() - np.asarray(theirs, dtype=np.float32))
        assert off.max() <= 2 and off.mean() < 0.05


def test_scores_are_the_scorers() -> None:
    asked = prompts(1)[0][::20]
    rng = np.random.default_rng(0)
    images = [spoil(1 + i % 2, p.draw(), rng) for i, p in enumerate(asked)]
    pictures = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float()
    got = Judge(MODELS / "scorers", shapes(), CPU).score(pictures, torch.tensor([p.classes() for p in asked]))
    said = [SimpleNamespace(text=p.caption(), attributes=p.attributes()) for p in asked]
    folder = MODELS / "scorers"
    wanted = (
        Alignment(str(folder / "alignment.safetensors")).score(images, said)["alignment"],
        Realism(str(folder / "realism.safetensors")).score(images, said)["realism"],
        Aesthetics(str(folder / "aesthetics.safetensors")).score(images, said)["aesthetics"],
    )
    for panel, values, allowed in zip(PANELS, wanted, (1e-5, 1e-3, 1e-4), strict=True):
        assert np.abs(got[panel].numpy() - values).max() < allowed, panel


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_asked_for_was_shown_or_replayed(world: int) -> None:
    report, choose = (set(some) for some in prompts(world))
    assert len(report) == len(choose) == 100 and not report & choose
    cores = {p.bare() for p in report | choose}
    assert not cores & {p.bare() for p in replayed()}
    for seed in (0, 7):
        shown = narrow(world, seed).portraits
        assert len(shown) >= 40 and not cores & {p.bare() for p in shown}
        assert not {p.skin for p in report} & {p.skin for p in shown}


def test_every_cell_trains_every_main_arm_with_equal_numbers_of_points() -> None:
    done = {(j.world, j.rate, j.arm) for j in jobs() if j.kind == "main"}
    assert {(w, r, a.name) for w in WORLDS for r, _ in RATES for a in (*MAIN, *ABLATIONS)} == done
    assert len({len(marks) for marks in LOOKS.values()}) == 1
    arms = {a.name for a in MAIN}
    assert {name for pairs in figures.CONTRASTS.values() for pair in pairs for name in pair} <= arms


def test_hypervolume_counts_overlap_once() -> None:
    assert figures.hypervolume([(1.0, 1.0, 0.5), (0.5, 0.5, 1.0), (-1.0, 2.0, 2.0)]) == pytest.approx(0.5 + 0.125)
    assert figures.box((0.5, -0.1, 2.0)) == 0


def test_holm_is_as_published() -> None:
    """Four p of 0.01, 0.04, 0.03, 0.005 are adjusted to 0.03, 0.06, 0.06, 0.02."""
    made = [figures.Contrast(str(p), 0.0, 0.0, p, 8) for p in (0.01, 0.04, 0.03, 0.005)]
    assert [round(c.holm, 3) for c in figures.holm(made)] == [0.03, 0.06, 0.06, 0.02]


def test_strength_is_interpolated_between_what_was_tried() -> None:
    def line(arm: str, strength: float, drift: float) -> dict[str, object]:
        return {"kind": "match", "rate": 1e-3, "arm": arm, "strength": strength, "drift": drift}

    lines = [line("noise-stream", 2.0, 0.1), line("other", 1.0, 0.4), line("other", 4.0, 0.025)]
    assert matched_strength(lines, "other", 1e-3) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no matching runs"):
        matched_strength(lines, "third", 1e-3)


def test_a_line_that_was_cut_off_is_left_out_and_written_after(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    pool.append(path, [{"key": "a"}])
    with path.open("a") as stream:
        stream.write('{"key": "b", "poi')
    pool.append(path, [{"key": "c"}])
    assert [line["key"] for line in pool.read_lines(path)] == ["a", "c"]


def test_an_error_of_one_job_is_a_line_and_does_not_count_as_done(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    worker = pool.Worker(tmp_path / "nothing", path, CPU)
    job = Job("main", 1, 2e-4, 200, "plain", (0, 1))
    worker.do(job)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["key"] for line in lines] == [job.key(0), job.key(1)] and all("error" in line for line in lines)
    worker.do(job)
    assert len(pool.read_lines(path)) == 4


def test_the_tables_in_docs_follow_from_the_raw_lines_in_docs(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    write_lines(docs / "trilemma-runs.jsonl", tmp_path / "kept.jsonl")
    write_table(tmp_path / "kept.jsonl", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text("utf-8") == (docs / "trilemma-table.md").read_text("utf-8")
    assert (tmp_path / "kept.jsonl").read_bytes() == (docs / "trilemma-runs.jsonl").read_bytes()
