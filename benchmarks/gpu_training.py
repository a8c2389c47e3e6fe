"""What the launcher's training step reaches on a GPU: `python -m benchmarks.gpu_training [--layers N --width N]`.

Makes a random SD3 transformer of the asked size beside the avatars' encoders, and pictures of smooth noise; encodes
them; then trains through the real launcher (accelerate, DeepSpeed ZeRO 2, bf16), plain, supervised and compiled, and
prints milliseconds a step, pictures a second and the most GPU memory that was in use. A bare loop over the same
transformer and the same cached tensors (bf16 weights, no fp32 masters, no average: less work) is the other side; the
last line is our pictures a second over the bare loop's. Figures from one card say nothing of another.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.settings import SupervisionSettings, TrainingSettings

MODELS = Path(__file__).resolve().parents[1] / "examples" / "avatars" / "models"
PICTURES = 64


def write_bundle(place: Path, layers: int, width: int) -> Path:
    """The avatars' bundle with a larger transformer, for pictures of up to 512 pixels."""
    import torch
    from diffusers import SD3Transformer2DModel

    shutil.copytree(MODELS / "base", place, ignore=lambda folder, _: ["transformer"] if folder.endswith("base") else [])
    config: dict[str, Any] = json.loads((MODELS / "base" / "transformer" / "config.json").read_text("utf-8"))
    config |= {"num_layers": layers, "num_attention_heads": width // 64, "attention_head_dim": 64}
    config |= {"caption_projection_dim": width, "pos_embed_max_size": 64}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = SD3Transformer2DModel.from_config(config)
    model.to(torch.bfloat16).save_pretrained(place / "transformer", max_shard_size="2GB")
    return place


def encode_noise(settings: TrainingSettings, features: Path) -> None:
    """Encode pictures of smooth noise, each with a caption of its own."""
    import numpy as np
    from PIL import Image

    from lineage.digests import digest_bytes
    from training.encode.encoding import Corpus, encode

    draws, pictures, rows = np.random.default_rng(0), [], []
    for number in range(PICTURES):
        pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(pixels).resize(settings.buckets[0], Image.Resampling.BICUBIC))
        stream = io.BytesIO()
        pictures[-1].save(stream, "PNG")
        told = {"file_name": f"{number}.png", "sha256": digest_bytes(stream.getvalue())}
        rows.append(told | {"text": f"a portrait, shirt {number}, with glasses"})
    encode(
        settings,
        Corpus(
            load=lambda numbers: [pictures[number] for number in numbers],
            rows=rows,
            sizes=[settings.buckets[0]] * PICTURES,
        ),
        features,
    )


@contextmanager
def most_memory() -> Iterator[list[float]]:
    """GiB of the card in use by anybody, at most, while the block runs."""
    import torch

    most, over = [0.0], threading.Event()

    def watch() -> None:
        while torch.cuda.is_available() and not over.wait(0.1):
            free, total = torch.cuda.mem_get_info()
            most[0] = max(most[0], (total - free) / 2**30)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def ours(settings: TrainingSettings, features: Path, place: Path) -> float:
    """Pictures a second through the launcher: the median of the curve's points but the first two."""
    from training.launch.launch import fine_tune
    from training.train.curves import read_points

    with tempfile.TemporaryDirectory(dir=place) as folder:
        curves = Path(folder) / "curves.jsonl"
        fine_tune(settings, features, Path(folder) / "candidate", curves)
        return statistics.median(point.samples_per_second for point in read_points(curves)[2:])


def bare(settings: TrainingSettings, features: Path) -> float:
    """Pictures a second of forward, backward, clipping and AdamW on tensors that wait on the device."""
    import torch
    from torch.nn import functional

    from training.encode.features import Features
    from training.families import family_of
    from training.train.model import Batches, move

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = family_of(settings.base_model)
    model = family.load_transformer(settings.precision).to(device, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    made = Batches(Features(features, settings), settings, family, rank=0, world=1)
    cached = [move(made[step], device) for step in range(4)]

    def step(number: int) -> None:
        batch = cached[number % len(cached)]
        with torch.autocast(device.type, torch.bfloat16):
            predicted = family.predict(model, batch.noisy, batch.timesteps, batch.conditioning, settings.guidance)
        functional.mse_loss(predicted.float(), batch.velocity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rates = []
    for turn in range(settings.steps // settings.log_every):
        began = time.perf_counter()
        for number in range(settings.log_every):
            step(turn * settings.log_every + number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(settings.log_every * settings.batch_size / (time.perf_counter() - began))
    return statistics.median(rates[2:])


def main() -> None:
    """Make, encode, measure; or be the process of the bare loop."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--pixels", type=int, default=256, help="height and width; the autoencoder divides by 4")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--without-compile", action="store_true")
    parser.add_argument("--bare", type=Path, help="(used for the bare loop's process)")
    asked = parser.parse_args()
    plain = TrainingSettings(
        base_model=(asked.bare / "bundle") if asked.bare else Path(),
        teacher=MODELS / "teacher",
        steps=asked.steps,
        batch_size=asked.batch,
        buckets=((asked.pixels, asked.pixels),),
        processes=1,
        threads_per_process=4,
        precision="bf16",
        cache_precision="fp16",
        cached=("latents", "text", "teacher"),
        log_every=5,
        supervision=SupervisionSettings(enabled=False, structure_weight=0, warmup_fraction=0, decay=False),
    )
    if asked.bare:
        print(json.dumps(bare(plain, asked.bare / "features")), flush=True)
        return
    on = plain.supervision.model_copy(update={"enabled": True})
    ways: dict[str, dict[str, Any]] = {"plain": {}, "supervised": {"supervision": on}, "compiled": {"compile": True}}
    if asked.without_compile:
        del ways["compiled"]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        bundle = write_bundle(place / "bundle", asked.layers, asked.width)
        config = {"base_model": bundle}
        encode_noise(plain.model_copy(update=config | {"supervision": on}), place / "features")
        size = sum(file.stat().st_size for file in (bundle / "transformer").glob("*.safetensors")) / 2e6
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"{card}, {size:.0f} M parameters, {asked.pixels} px, batch {asked.batch}", flush=True)
        rates = {}
        for name, more in ways.items():
            with most_memory() as most:
                rates[name] = ours(plain.model_copy(update=config | more), place / "features", place)
            took = 1000 * asked.batch / rates[name]
            print(f"ours, {name}: {took:.1f} ms a step, {rates[name]:.1f} pictures/s, {most[0]:.1f} GiB", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_training", "--bare", str(place), *sys.argv[1:]]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rates["bare"] = float(json.loads(said.splitlines()[-1]))
        print(f"bare: {1000 * asked.batch / rates['bare']:.1f} ms a step, {rates['bare']:.1f} pictures/s")
    print(f"step time, supervised / plain: {rates['plain'] / rates['supervised']:.3f}")
    print(f"pictures/s, ours / bare: {rates['plain'] / rates['bare']:.3f}")


if __name__ == "__main__":
    main()
