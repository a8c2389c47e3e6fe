"""Our training against diffusers' own SD3 full fine-tuning example: `python -m benchmarks.diffusers_sd3`.

The example is fetched by hand and never part of this repository: `examples/dreambooth/train_dreambooth_sd3.py` of
https://github.com/huggingface/diffusers at commit 01310e78bf9862c563cd6f273560e6264b709ea7. It reads captions with
the package `datasets` and pictures with torchvision's transforms, neither of which is installed here: folders that
have `datasets` and a module `picture_transforms` are named by `--path` (docs/training.md says how to make them). A
copy of the script is run whose only change is that it imports its transforms from there.

Both sides train the same transformer on the same pictures, captions, token counts, batch size, learning rate, AdamW
without decay, gradient clipping and logit-normal noise levels, from a variant of the avatars bundle that has what the
script insists on: 77 CLIP positions and a T5 (tiny and random). Whole runs take turns, each in processes of its own
on the same number of cores; only training steps count, from the stamps of every tenth step, after the first ten.

1. equal precision: fp32 on both sides, no average of the weights on ours.
2. what pays: bf16 where the processor has instructions for it, the average kept. The script stays as in 1.

All sides are one process with all cores, because two processes share their weights over a socket, which costs more
than a second thread loses. Ours compiles its blocks, as it does wherever `training.compile` is set; how long its first
ten steps take, compiling included, is printed.

What makes the difference is first that ours reads latents and text embeddings that were encoded once (how long that
took is printed, and is not part of the ratio), while the script runs the VAE and three text encoders in every step:
so the ratio depends on how large those are beside the transformer, here a tiny VAE and tiny text encoders. Besides,
ours uses PyTorch's fused AdamW and an allocator that keeps freed memory; the script logs its loss every step.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training_step import DATA, MODELS, encode_some, some_rows
from training.settings import SupervisionSettings, TrainingSettings

CLIP_TOKENS = T5_TOKENS = 77
EVERY = 10
"""Steps between two stamps, on both sides; those before the first are not counted."""
IMPORTS = {
    "from torchvision import transforms": "import picture_transforms as transforms",
    "from torchvision.transforms.functional import crop": "from picture_transforms import crop",
}


@dataclass
class Side:
    """What one side did, run by run: the median of samples/s, and mean losses up to each stamp."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Seconds that the first ten steps took, compiling included."""
    losses: list[list[float]] = field(default_factory=list)

    def curve(self) -> list[float]:
        """Mean loss over the runs at each stamp."""
        return [statistics.fmean(losses) for losses in zip(*self.losses, strict=True)]

    def end(self) -> float:
        """Mean loss over the second half of the steps."""
        curve = self.curve()
        return statistics.fmean(curve[len(curve) // 2 :])


def make_bundle(folder: Path, captions: list[str]) -> None:
    """The avatars bundle with 77 CLIP positions, the new ones random, and a T5, tiny and random."""
    import torch
    from diffusers import StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline.from_pretrained(MODELS / "base", text_encoder_3=None, tokenizer_3=None)
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        tokenizer.model_max_length = CLIP_TOKENS
    for clip in (pipeline.text_encoder, pipeline.text_encoder_2):
        embeddings = next(m for m in clip.modules() if hasattr(m, "position_embedding"))
        wider = torch.nn.Embedding(CLIP_TOKENS, clip.config.hidden_size)
        torch.nn.init.normal_(wider.weight, std=clip.config.initializer_range)
        learned = embeddings.position_embedding.weight.data
        wider.weight.data[: len(learned)] = learned
        embeddings.position_embedding = wider
        clip.config.max_position_embeddings = CLIP_TOKENS
    words = sorted({f"▁{word}" for caption in captions for word in caption.split()})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -2.0) for word in ["▁", *words])]
    sizes = {"d_model": pipeline.transformer.config.joint_attention_dim, "d_kv": 32, "d_ff": 256}
    t5 = T5EncoderModel(T5Config(vocab_size=len(vocabulary), num_layers=4, num_heads=4, **sizes))
    pipeline.register_modules(tokenizer_3=T5Tokenizer(vocab=vocabulary, extra_ids=0), text_encoder_3=t5)
    pipeline.save_pretrained(folder)


def make_pictures(folder: Path, rows: list[dict[str, str]]) -> None:
    """A folder as `datasets` reads it: pictures, and their captions in metadata.jsonl."""
    folder.mkdir()
    for row in rows:
        shutil.copy(DATA / row["file_name"], folder)
    lines = [json.dumps({"file_name": row["file_name"], "text": row["text"]}) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


def copy_script(script: Path, to: Path) -> None:
    """The script with other imports: transformers breaks where a stand-in is called torchvision."""
    text = script.read_text("utf-8")
    for theirs, standing_in in IMPORTS.items():
        if theirs not in text:
            raise SystemExit(f"{script} has no line {theirs!r}: fetch it at the commit that docs/training.md names")
        text = text.replace(theirs, standing_in)
    to.write_text(text, "utf-8")


def run_script() -> None:
    """In a process of its own: run the script named by the arguments, each step's time and loss going to a file."""
    from accelerate import Accelerator

    points, script, *arguments = sys.argv[1:]
    with Path(points).open("w", encoding="utf-8") as file:

        def log(self: Any, values: dict[str, float], step: int, **_: Any) -> None:
            file.write(json.dumps({"step": step, "at": time.perf_counter(), "loss": values["loss"]}) + "\n")

        Accelerator.log = log
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")


def theirs(asked: argparse.Namespace, place: Path, seed: int, side: Side) -> None:
    """One run of the script: fp32, one process."""
    from training.launch.processes import child

    options = f"""
        --pretrained_model_name_or_path {place}/bundle --dataset_name {place}/pictures --cache_dir {place}/cache
        --output_dir {place}/theirs --image_column image --caption_column text --instance_prompt portrait
        --max_sequence_length {T5_TOKENS} --resolution 64 --center_crop --train_batch_size {asked.batch} --seed {seed}
        --max_train_steps {asked.steps} --learning_rate {asked.learning_rate} --lr_warmup_steps 0 --adam_weight_decay 0
        --weighting_scheme logit_normal --checkpointing_steps {asked.steps + 1} --mixed_precision no
        --precondition_outputs 0"""  # the last: its loss is then that of the velocity, as ours is
    points = place / "theirs.jsonl"
    run = "from benchmarks.diffusers_sd3 import run_script; run_script()"
    command = [sys.executable, "-c", run, str(points), str(place / "script.py"), *options.split()]
    paths = [str(path.resolve()) for path in (Path(__file__).parents[1], *asked.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(place / "home")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(asked.cores), "MKL_NUM_THREADS": str(asked.cores)}
    with child(command, environment) as process:
        tail = deque(process.stdout or (), maxlen=30)
        if process.wait():
            raise SystemExit(f"the script ended with status {process.returncode}:\n{''.join(tail)}")
    made = [json.loads(line) for line in points.read_text("utf-8").splitlines()]
    stamps = [point["at"] for point in made if point["step"] % EVERY == 0]
    losses = [point["loss"] for point in made]
    side.rates.append(statistics.median(EVERY * asked.batch / (end - begin) for begin, end in pairwise(stamps)))
    side.losses.append([statistics.fmean(losses[i : i + EVERY]) for i in range(0, asked.steps, EVERY)])


def settings_of(asked: argparse.Namespace, bundle: Path, seed: int, **chosen: Any) -> TrainingSettings:
    """Plain fine-tuning of what the script does; ``chosen`` says how it is computed."""
    run = {"base_model": bundle, "steps": asked.steps, "batch_size": asked.batch, "learning_rate": asked.learning_rate}
    equal = {"warmup_steps": 0, "weight_decay": 0, "caption_dropout": 0, "max_sequence_length": T5_TOKENS}
    plain = SupervisionSettings(enabled=False)
    return TrainingSettings(**run, **equal, log_every=EVERY, seed=seed, supervision=plain, **chosen)


def ours(settings: TrainingSettings, place: Path, side: Side) -> None:
    """One run of ours, through the launcher."""
    from training.launch.launch import fine_tune
    from training.train.curves import read_points

    with tempfile.TemporaryDirectory(dir=place) as folder:
        curves = Path(folder) / "curves.jsonl"
        fine_tune(settings, place / "features", Path(folder) / "candidate", curves)
        points = read_points(curves)
    side.rates.append(statistics.median(point.samples_per_second for point in points[1:]))
    side.first.append(EVERY * settings.batch_size / points[0].samples_per_second)
    side.losses.append([point.loss_flow for point in points])


def default_precision() -> str:
    """bf16 where the hardware multiplies it, else fp32."""
    from torch import cpu, cuda

    fast = cuda.is_available() or cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def measure(asked: argparse.Namespace, place: Path) -> dict[str, Side]:
    """Make what both sides read, and let them take turns."""
    rows = some_rows(asked.pictures)
    copy_script(asked.script, place / "script.py")
    make_bundle(place / "bundle", [row["text"] for row in rows])
    make_pictures(place / "pictures", rows)
    alone = {"processes": 1, "threads_per_process": asked.cores, "compile": True}
    ways: dict[str, dict[str, Any]] = {
        "ours, equal precision": alone | {"ema_decay": 0},
        f"ours, {asked.precision}": alone | {"precision": asked.precision},
    }
    began = time.perf_counter()
    encode_some(settings_of(asked, place / "bundle", 0, **ways["ours, equal precision"]), len(rows), place / "features")
    print(f"encoding {len(rows)} pictures and their captions once: {time.perf_counter() - began:.1f} s, models loaded")
    sides = {name: Side() for name in ("script", *ways)}
    for seed in range(asked.rounds):
        for name in list(sides) if seed % 2 else reversed(sides):
            if name == "script":
                theirs(asked, place, seed, sides[name])
            else:
                ours(settings_of(asked, place / "bundle", seed, **ways[name]), place, sides[name])
    return sides


def report(asked: argparse.Namespace, sides: dict[str, Side]) -> None:
    """Losses, samples/s, and the two ratios last."""
    print(f"{asked.rounds} rounds of {asked.steps} steps, batch {asked.batch}, {asked.cores} cores a side; script fp32")
    print(f"velocity loss: {', '.join(sides)}")
    for number, row in enumerate(zip(*(side.curve() for side in sides.values()), strict=True)):
        print(f"{(number + 1) * EVERY:6d}  " + "  ".join(f"{loss:.4f}" for loss in row))
    script = sides.pop("script")
    print(f"script: loss {script.end():.4f} in the second half, {statistics.median(script.rates):.1f} samples/s")
    for name, side in sides.items():
        apart = side.end() / script.end() - 1
        verdict = "agrees" if abs(apart) <= asked.tolerance else "DOES NOT AGREE"
        print(f"{name}: loss {side.end():.4f}, {apart:+.1%} and {verdict} within {asked.tolerance:.0%}, "
              f"{statistics.median(side.rates):.1f} samples/s, the first {EVERY} steps "
              f"took {max(side.first):.0f} s")  # fmt: skip
    for name, side in sides.items():
        ratio = statistics.median(a / b for a, b in zip(side.rates, script.rates, strict=True))
        print(f"samples/s, {name} / script: {ratio:.2f}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, required=True, help="train_dreambooth_sd3.py")
    parser.add_argument("--path", type=Path, nargs="+", default=[], help="folders with datasets and picture_transforms")
    parser.add_argument("--pictures", type=int, default=512, help="avatars to train on; a multiple of --batch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help=f"of each run; a multiple of {EVERY}, three at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="threads of each side")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default=default_precision(), help="of ours where it need not be equal"
    )
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative difference of losses that agree")
    asked = parser.parse_args()
    if asked.steps % EVERY or asked.steps < 3 * EVERY or asked.pictures % asked.batch:
        parser.error(f"--steps: a multiple of {EVERY}, three times that at least; --pictures: of --batch")
    with tempfile.TemporaryDirectory() as place:
        report(asked, measure(asked, Path(place)))


if __name__ == "__main__":
    main()
