"""Host memory that a process needs while it loads the MM-DiT: `python -m benchmarks.loading_memory [--layers N]`.

Writes a random SD3 transformer, loads it in two processes in each way, and prints the most memory of its own
(anonymous, not the files that all processes map) that the first process had at once, against the weights' size in fp32.
The way before this was built is among them. The last line is ZeRO-3's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MODELS = Path(__file__).resolve().parents[1] / "examples" / "avatars" / "models"
WAYS = {"whole, fp32, not on meta": "whole", "ZeRO 2, fp32": "2 fp32", "ZeRO 2, bf16": "2 bf16",
        "ZeRO 3, bf16": "3 bf16", "ZeRO 3, fp32": "3 fp32"}  # fmt: skip


def write_bundle(place: Path, layers: int, width: int) -> Path:
    """The avatars' bundle with a larger transformer."""
    import torch
    from diffusers import SD3Transformer2DModel

    shutil.copytree(MODELS / "base", place, ignore=lambda folder, _: ["transformer"] if folder.endswith("base") else [])
    config: dict[str, Any] = json.loads((MODELS / "base" / "transformer" / "config.json").read_text("utf-8"))
    config |= {"num_layers": layers, "num_attention_heads": width // 64, "attention_head_dim": 64}
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config(config | {"caption_projection_dim": width}).save_pretrained(
        place / "transformer", max_shard_size="500MB"
    )
    return place


def own_memory() -> int:
    """Anonymous resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def load(bundle: Path, way: str) -> dict[str, float]:
    """One process: load, and watch."""
    import deepspeed
    import diffusers
    import diffusers.models.transformers.transformer_sd3

    from training.families import family_of
    from training.settings import SupervisionSettings, TrainingSettings
    from training.train.deepspeed_config import deepspeed_config

    deepspeed.init_distributed("gloo", verbose=False)
    family, peak, over = family_of(bundle), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.002)

    watcher, before = threading.Thread(target=watch), own_memory()
    watcher.start()
    if way == "whole":
        model = diffusers.SD3Transformer2DModel.from_pretrained(bundle / "transformer", low_cpu_mem_usage=False).float()
    else:
        stage, precision = way.split()
        settings = TrainingSettings(
            base_model=bundle,
            zero_stage=int(stage),
            precision=precision,
            supervision=SupervisionSettings(enabled=False),
        )
        model = family.load_transformer(precision, deepspeed_config(settings))
    over.set()
    watcher.join()
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return {"parameters": count, "peak": peak[0] - before}


def measure(bundle: Path, way: str) -> dict[str, float]:
    """Two processes; gives what the first one says."""
    from training.launch.launch import launcher_environment, torchrun

    command = [*torchrun(2), "benchmarks.loading_memory", "--bundle", str(bundle), "--way", way]
    environment = launcher_environment(1) | {"DS_ACCELERATOR": "cpu"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    said: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return said


def main() -> None:
    """Measure each way, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--bundle", type=Path, help="(used for the processes)")
    parser.add_argument("--way", help="(used for the processes)")
    asked = parser.parse_args()
    if asked.way:
        said = load(asked.bundle, asked.way)
        if os.environ["RANK"] == "0":
            print(json.dumps(said), flush=True)
        os._exit(0)
    with tempfile.TemporaryDirectory() as place:
        bundle = write_bundle(Path(place) / "bundle", asked.layers, asked.width)
        for name, way in WAYS.items():
            said = measure(bundle, way)
            share = said["peak"] / (4 * said["parameters"])
            print(f"{name:26} {said['peak'] / 2**20:7.0f} MiB, {share:.2f} of the weights in fp32", flush=True)
    print(f"{said['parameters'] / 1e6:.0f} M parameters over two processes; ZeRO 3 loads with {share:.2f} of them")


if __name__ == "__main__":
    main()
