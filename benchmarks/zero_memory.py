"""Memory per parameter under ZeRO 0, 2 and 3: `python -m benchmarks.zero_memory`.

For each stage, two processes hold a transformer of real shape and random weights, and take two steps; counted are the
bytes of every tensor that outlives a step: weights, master weights, optimizer state, gradients' buffers and the
average. Activations and library memory are left out:
they do not depend on the stage. The last line is bytes per parameter and process, by stage.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
from pathlib import Path

STAGES = (0, 2, 3)
BUCKET = 100_000
"""Elements of DeepSpeed's communication buffer, whose size is fixed (training uses 50 M): small here, not to count."""


def held(stage: int, layers: int, width: int, precision: str) -> dict[str, float]:
    """One process: build, take two steps, count; gives bytes per parameter."""
    import torch
    from diffusers import SD3Transformer2DModel

    from training.settings import SupervisionSettings, TrainingSettings
    from training.train.deepspeed_config import deepspeed_config
    from training.train.loop import start_accelerator
    from training.train.masters import Masters

    settings = TrainingSettings(
        base_model=Path(),
        zero_stage=stage,
        batch_size=2,
        precision=precision,
        supervision=SupervisionSettings(enabled=False),
    )
    config = deepspeed_config(settings)
    config["zero_optimization"]["reduce_bucket_size"] = BUCKET
    accelerator = start_accelerator(config)
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=64,
        caption_projection_dim=width,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, _ = accelerator.prepare(model, optimizer)
    masters = Masters(engine, stage, 0.999)
    kind = next(model.parameters()).dtype
    for _ in range(2):
        predicted = engine(
            hidden_states=torch.randn(1, 4, 16, 16, dtype=kind),
            encoder_hidden_states=torch.randn(1, 4, 64, dtype=kind),
            pooled_projections=torch.randn(1, 64, dtype=kind),
            timestep=torch.ones(1),
            return_dict=False,
        )[0]
        engine.backward(predicted.float().square().mean())
        engine.step()
        masters.average()
    del predicted
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return {"parameters": parameters, "bytes": sum(storages.values()) / parameters}


def measure(stage: int, layers: int, width: int, precision: str) -> dict[str, float]:
    """Two processes at ``stage``; gives what the first one held."""
    from training.launch.launch import launcher_environment, torchrun

    command = [*torchrun(2), "benchmarks.zero_memory", "--layers", str(layers), "--width", str(width)]
    command += ["--precision", precision, "--stage", str(stage)]
    environment = launcher_environment(1) | {"DS_ACCELERATOR": "cpu"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith('{"parameters"'))
    read: dict[str, float] = json.loads(line)
    return read


def main() -> None:
    """Measure each stage, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: stages 2 and 3 only")
    parser.add_argument("--stage", type=int, help="(used for the processes)")
    asked = parser.parse_args()
    if asked.stage is not None:
        said = held(asked.stage, asked.layers, asked.width, asked.precision)
        if os.environ["RANK"] == "0":
            print(json.dumps(said), flush=True)
        os._exit(0)
    found = {}
    for stage in STAGES if asked.precision == "fp32" else STAGES[1:]:
        result = measure(stage, asked.layers, asked.width, asked.precision)
        found[stage] = result["bytes"]
        print(f"ZeRO {stage}: {result['bytes']:.1f} bytes a parameter, {result['parameters'] / 1e6:.1f} M parameters")
    print("bytes per parameter and process: " + ", ".join(f"ZeRO {s} {b:.1f}" for s, b in found.items()))


if __name__ == "__main__":
    main()
