"""The ablation of feature supervision on avatars: equal steps, seeds paired across arms.

    python -m benchmarks.supervision encode FEATURES                      once: encode the new data
    python -m benchmarks.supervision run RESULTS --features FEATURES --arm ours --seed 0
    python -m benchmarks.supervision run RESULTS --features FEATURES --arm ours --seed 0 --start random
    python -m benchmarks.supervision report RESULTS                       the tables, the plot, the ratios

Training starts from the base model, as retraining does, or from random weights, where all is still to be learned:
eight attributes, not two. A run is one process and one JSON file; runs of all arms and seeds can go side by side, on a
CPU (`--device cpu --threads 1`) or a GPU (`--device cuda`). It trains with the product's own model, losses, draws and
schedules, without DeepSpeed, and along the way draws held-out prompts with the averaged weights; avatars' own
*alignment* scorer, which is no teacher, says how far they show what was asked. With one seed, all arms see the same
samples, noise, timesteps and prompts, and start from the same weights. The report ends, for each start, with the steps
that `ours` needs to reach the alignment at which plain fine-tuning ends, over the steps of plain fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn import functional

from benchmarks.supervision_report import BASE, RANDOM, STARTS, write_report
from training.settings import SupervisionSettings, TrainingSettings
from training.teach.targets import Target, assign

AVATARS = Path(__file__).parents[1] / "examples" / "avatars"
NEW, EVALUATION, MODELS = AVATARS / "data" / "new", AVATARS / "evaluation", AVATARS / "models"

OURS: dict[str, Any] = {"enabled": True, "projector_hidden": 256, "structure_weight": 0.0}
THROUGHOUT = {"tap": 4, "weight": 1.0, "warmup_fraction": 0.0, "ramp_fraction": 0.0, "decay": False}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"enabled": False},
    "vision": {"target": "vision"},
    "ours": {},
    "ours-without-local": {"local_weight": 0.0},
    "ours-without-global": {"global_weight": 0.0},
    "ours-with-structure": {"structure_weight": 0.1},
    "structure-alone": {"local_weight": 0.0, "global_weight": 0.0, "structure_weight": 0.1},
    "shuffled-text": {"target": "shuffled-text"},
    "caption-only": {"granularity": ["caption"]},
    "no-decay": {"decay": False},
    "late-decay": {"decay_end_fraction": 1.0},
    "strong": {"weight": 2.0},
    "strong-no-decay": {"weight": 2.0, "decay": False},
    "shallow-tap": {"tap": 0},
    "deep-tap": {"tap": 3},
    "deep-tap-no-decay": {"tap": 3, "decay": False},
    "no-warmup": {"warmup_fraction": 0.0, "ramp_fraction": 0.0},
    "noisy": {},
    "noisy-strong-no-decay": {"weight": 2.0, "decay": False},
    "fast-projector": {},
    "fast-projector-no-decay": {"decay": False},
    "fast-projector-strong-no-decay": {"weight": 2.0, "decay": False},
    "throughout": THROUGHOUT,
    "throughout-vision": THROUGHOUT | {"target": "vision"},
    "throughout-shuffled": THROUGHOUT | {"target": "shuffled-text"},
    "throughout-centred": THROUGHOUT,
}
"""What each arm changes of `OURS`; the weights at the start are the first point of every arm.

The arms called noisy weigh a sample's supervision by σ², at mean one: where little of the picture is left to see, the
image stream can hold what the caption says only by way of the text. Those called fast-projector train the projector,
which starts from nothing, at five times the learning rate. Those called throughout supervise a deep block from the
first step to the last, twice as strongly. The one called centred is pulled towards the text's features less their mean
over the corpus, as all were before.
"""
FAST = 5.0


def settings_of(arm: str, seed: int, steps: int, batch_size: int) -> TrainingSettings:
    """The settings of one run; all arms read the same features."""
    return TrainingSettings(
        base_model=MODELS / "base",
        teacher=MODELS / "teacher",
        steps=steps,
        batch_size=batch_size,
        processes=1,
        learning_rate=7e-4,
        seed=seed,
        ema_decay=0.99,
        null_tokens=(1, 1),
        cached=("latents", "text", "teacher", "structure"),
        cache_precision="fp16",
        supervision=SupervisionSettings(**(OURS | ARMS[arm])),
    )


def encode_new(data: Path, features: Path) -> None:
    """Encode the pictures of an `imagefolder` for all arms."""
    from lineage.digests import digest_file
    from training.encode.encoding import Corpus, encode
    from training.encode.pictures import open_picture

    metadata = data / "metadata.jsonl"
    listed = [json.loads(line) for line in metadata.read_text("utf-8").splitlines()]
    rows = [
        {"file_name": row["file_name"], "uri": f"file://{(data / row['file_name']).resolve()}", "text": row["text"]}
        for row in listed
    ]
    for row in rows:
        row["sha256"] = digest_file(data / row["file_name"])
    corpus = Corpus(rows, lambda numbers: [open_picture(rows[number]) for number in numbers])
    info = encode(settings_of("ours-with-structure", 0, 1, 1), corpus, features)
    print(json.dumps(info.alignment))


def encode_asked(asked: argparse.Namespace) -> None:
    """Encode the data that was asked for."""
    if not asked.wide:
        return encode_new(asked.data, asked.features)
    from examples.avatars.splits import portraits

    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, portrait in enumerate(portraits("new", asked.wide)):
            rows.append({"file_name": f"{number:04d}.png", "text": portrait.caption()})
            portrait.draw().save(Path(folder) / rows[-1]["file_name"])
        (Path(folder) / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        encode_new(Path(folder), asked.features)


class Run:
    """One arm with one seed, from the base model or from random weights."""

    def __init__(self, settings: TrainingSettings, features: Path, device: torch.device, arm: str, start: str) -> None:
        from training.encode.features import Features
        from training.families import family_of
        from training.train.model import Batches, SupervisedTransformer, parameter_groups

        self.settings, self.device, self.noisy = settings, device, arm.startswith("noisy")
        read = Features(features, settings)
        if arm.endswith("-centred"):
            _centre(read.targets)
        family = family_of(settings.base_model)
        self.batches = Batches(read, settings, family, rank=0, world=1)
        self.model = SupervisedTransformer(family, read, settings).to(device)
        if start == RANDOM:
            torch.manual_seed(settings.seed)
            fresh = type(self.model.backbone).from_config(self.model.backbone.config)
            self.model.backbone.load_state_dict(fresh.state_dict())
        groups = parameter_groups(self.model, settings.weight_decay)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.averaged = [parameter.detach().clone() for parameter in self.trained]
        if arm.startswith("fast-projector"):
            groups = _apart(groups, {id(one) for one in self.model.projector.parameters()})
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)

    def steps(self) -> Iterator[int]:
        """Train; gives the number of steps done after each."""
        from training.teach.supervision import schedule
        from training.train.loop import learning_rate

        settings = self.settings
        for step in range(settings.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group.get("faster", 1.0)
            batch = send_to_device(self.batches[step], self.device)
            if self.noisy:
                weights = batch.timesteps.square()
                batch = batch._replace(shares=batch.shares * weights / weights.mean())
            losses = self.model(batch, schedule(settings.supervision, step, settings.steps))
            self.optimizer.zero_grad(set_to_none=True)
            losses.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, settings.max_gradient_norm)
            self.optimizer.step()
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained], 1 - decay)
            yield step + 1

    def swap(self) -> None:
        """Exchange the weights and their average."""
        for parameter, average in zip(self.trained, self.averaged, strict=True):
            kept = parameter.data.clone()
            parameter.data.copy_(average)
            average.copy_(kept)


def _centre(targets: Any) -> None:
    """Have targets pull towards the text less its mean; what patches are assigned by stays."""
    spoken, of = targets._spoken, targets.of
    pulled = functional.normalize(spoken - spoken.mean(dim=0), dim=-1)
    targets._captions = functional.normalize(targets._captions - targets._captions[1:].mean(dim=0), dim=-1)

    def centred(samples: list[int], patches: torch.Tensor) -> Target:
        parts = targets._parts[targets._rows[list(samples)]]
        seen, said = functional.normalize(patches.float(), dim=-1), parts.clamp(min=0)
        assignment = assign(seen, spoken[said], targets._temperature, parts >= 0)
        return of(samples, patches)._replace(local=assignment @ pulled[said])

    targets.of = centred


def _apart(groups: list[dict[str, Any]], projector: set[int]) -> list[dict[str, Any]]:
    """The optimizer's groups with the projector's parameters in groups of their own, which learn faster."""
    cut = []
    for group in groups:
        for inside, faster in ((True, FAST), (False, 1.0)):
            members = [one for one in group["params"] if (id(one) in projector) == inside]
            cut += [{**group, "params": members, "faster": faster}] if members else []
    return cut


class Examiner:
    """Draws held-out prompts and asks avatars' alignment scorer."""

    def __init__(self, prompts: int, device: torch.device) -> None:
        from examples.avatars.scorers import Alignment
        from training.families import family_of

        lines = (EVALUATION / "prompts.jsonl").read_text("utf-8").splitlines()[:prompts]
        self.prompts = [SimpleNamespace(**json.loads(line)) for line in lines]
        described = json.loads((EVALUATION / "set.json").read_text("utf-8"))
        self.sampling = {name: value for name, value in described.items() if name not in ("name", "version")}
        self.scorer = Alignment(str(MODELS / "scorers" / "alignment.safetensors"))
        self.pipeline = family_of(MODELS / "base").load_pipeline().to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def alignment(self, run: Run) -> dict[str, float]:
        """Mean alignment, and its parts for glasses and beard, of the run's averaged weights."""
        import numpy as np
        from PIL import Image

        run.swap()
        self.pipeline.transformer.load_state_dict(run.model.backbone.state_dict())
        run.swap()
        images = []
        for start in range(0, len(self.prompts), 50):
            batch = self.prompts[start : start + 50]
            generators = [torch.Generator("cpu").manual_seed(prompt.seeds[0]) for prompt in batch]
            texts = [prompt.text for prompt in batch]
            drawn = self.pipeline(prompt=texts, generator=generators, output_type="np", **self.sampling).images
            images += [Image.fromarray((pixels * 255).round().astype(np.uint8)) for pixels in drawn]
        scores = self.scorer.score(images, self.prompts)
        names = ("alignment", "alignment/glasses", "alignment/beard")
        return {name: float(np.nanmean(scores[name])) for name in names}


def run_arm(asked: argparse.Namespace) -> None:
    """Train one arm with one seed, and write its alignment along the way."""
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    settings = settings_of(asked.arm, asked.seed, asked.steps, asked.batch_size)
    run = Run(settings, asked.features, device, asked.arm, asked.start)
    examiner = Examiner(asked.prompts, device)
    points = [{"step": 0, **examiner.alignment(run)}]
    seconds, began = 0.0, time.perf_counter()
    for done in run.steps():
        if done % asked.every == 0 or done == asked.steps:
            seconds += time.perf_counter() - began
            points.append({"step": done, **examiner.alignment(run)})
            print(f"{asked.start} {asked.arm} {asked.seed}: {points[-1]}", flush=True)
            began = time.perf_counter()
    result = {
        "start": asked.start,
        "arm": asked.arm,
        "seed": asked.seed,
        "steps": asked.steps,
        "prompts": len(examiner.prompts),
        "device": asked.device,
        "seconds": seconds,
        "settings": settings.model_dump(mode="json", exclude={"base_model", "teacher"}),
        "points": points,
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / f"{asked.start}-{asked.arm}-{asked.seed}.json").write_text(
        json.dumps(result, indent=1) + "\n", "utf-8"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supervision", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    encode = commands.add_parser("encode", help="encode the new data, once for all arms")
    encode.add_argument("features", type=Path)
    encode.add_argument("--data", type=Path, default=NEW, help="folder with metadata.jsonl (make data)")
    encode.add_argument("--wide", type=int, help="instead, so many portraits of every kind, drawn for this")
    encode.set_defaults(do=encode_asked)
    run = commands.add_parser("run", help="one arm with one seed")
    run.add_argument("results", type=Path)
    run.add_argument("--features", type=Path, required=True)
    run.add_argument("--arm", choices=ARMS, required=True)
    run.add_argument("--seed", type=int, required=True)
    run.add_argument("--start", choices=STARTS, default=BASE, help="the weights that training starts from")
    run.add_argument("--steps", type=int, default=240)
    run.add_argument("--batch-size", type=int, default=32)
    run.add_argument("--every", type=int, default=20, help="steps between two measurements")
    run.add_argument("--prompts", type=int, default=200, help="held-out prompts drawn at each measurement, at most 400")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=int, default=1)
    run.set_defaults(do=run_arm)
    report = commands.add_parser(
        "report", help="tables and plot of all runs in a folder, or a file with one on each line"
    )
    report.add_argument("results", type=Path)
    report.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs")
    report.set_defaults(do=lambda asked: print(write_report(asked.results, asked.docs)))
    asked = parser.parse_args()
    asked.do(asked)


if __name__ == "__main__":
    main()
