"""Our training step against a bare one, and with supervision against without: `python -m benchmarks.training_step`.

The bare loop is forward, backward, clipping and AdamW over the same transformer and the same cached tensors, and
nothing else. All sides live in one process, with the threads and the allocator of a training process, and take turns,
block by block; the last line is the median of the ratios of neighbouring blocks: our samples/s over the bare loop's
(one process, average off). Before it: step time with supervision over step time without, at full weight in every step
and as a mean over a training whose schedule is the default, and step time with half of the batch replayed over that of
a whole batch of pictures. `--processes 2` instead reports what a second process costs, through the launcher: the share
of two processes' time a step that one process of half the batch does not need.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.settings import ReplaySettings, SupervisionSettings, TrainingSettings

AVATARS = (Path(__file__).parents[1] / "examples" / "avatars").resolve()
MODELS, DATA, CAPTIONS = AVATARS / "models", AVATARS / "data" / "new", AVATARS / "replay.txt"
WARM = 3


def settings_of(
    steps: int, batch: int, supervised: bool, processes: int = 1, replayed: bool = False
) -> TrainingSettings:
    """Plain, supervised or replaying training of ``batch`` inputs a step without an average, all features cached."""
    replays = batch // 2 if replayed else 0
    return TrainingSettings(
        base_model=MODELS / "base",
        teacher=MODELS / "teacher",
        steps=steps,
        batch_size=batch - replays,
        processes=processes,
        ema_decay=0,
        log_every=10,
        cached=("latents", "text", "teacher"),
        replay=ReplaySettings(captions=CAPTIONS, batch_size=replays, draws=64) if replayed else ReplaySettings(),
        supervision=SupervisionSettings(
            enabled=supervised, projector_hidden=256, structure_weight=0, warmup_fraction=0, decay=False
        ),
    )


def ours(settings: TrainingSettings, features: Path, place: Path) -> Callable[[int], None]:
    """The product's loop; gives what does one step."""
    from training.launch.launch import run_identity
    from training.teach.supervision import schedule
    from training.train.job import TrainingJob
    from training.train.loop import Trainer, prepare

    job = TrainingJob(
        settings=settings,
        features=features,
        candidate=place / "candidate",
        curves=place / "curves.jsonl",
        identity=run_identity(settings, features),
        checkpoints=None,
    )
    accelerator = the_accelerator()
    batches, engine = prepare(job, accelerator)
    trainer = Trainer(job, accelerator, engine)

    def step(number: int) -> None:
        phase = schedule(settings.supervision, number, settings.steps)
        trainer.step(number, batches[number], phase)
        if (number + 1) % settings.log_every == 0:
            trainer.point(number, phase)
        trainer.saving.after(number + 1)

    return step


def bare(settings: TrainingSettings, features: Path, steps: int) -> Callable[[int], None]:
    """Forward, backward, clipping and AdamW on tensors made beforehand."""
    import torch
    from torch.nn import functional

    from training.encode.features import Features
    from training.families import family_of
    from training.train.model import Batches

    family = family_of(settings.base_model)
    model = family.load_transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    made = Batches(Features(features, settings), settings, family, rank=0, world=1)
    cached = [made[step] for step in range(steps)]

    def step(number: int) -> None:
        batch = cached[number]
        predicted = family.predict(model, batch.noisy, batch.timesteps, batch.conditioning, settings.guidance)
        functional.mse_loss(predicted.float(), batch.velocity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


_made: list[Any] = []


def the_accelerator() -> Any:
    """The one Accelerator of this process, under DeepSpeed as the launcher would start it."""
    import socket

    from training.train.deepspeed_config import deepspeed_config
    from training.train.loop import start_accelerator

    if not _made:
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["DS_ACCELERATOR"] = "cpu"
        _made.append(start_accelerator(deepspeed_config(settings_of(1, BATCH[0], False))))
    return _made[0]


BATCH = [16]


def some_rows(count: int) -> list[dict[str, str]]:
    """The first ``count`` of the new avatars (`make data` draws them): name, caption, place and digest."""
    import json

    from lineage.digests import digest_file

    lines = (DATA / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
    return [
        {
            "file_name": row["file_name"],
            "text": row["text"],
            "uri": (DATA / row["file_name"]).as_uri(),
            "sha256": digest_file(DATA / row["file_name"]),
        }
        for row in map(json.loads, lines)
    ]


def encode_some(settings: TrainingSettings, count: int, features: Path) -> None:
    """Encode the first ``count`` of the new avatars."""
    from training.encode.encoding import Corpus, encode
    from training.encode.pictures import open_picture

    rows = some_rows(count)
    corpus = Corpus(rows, lambda numbers: [open_picture(rows[number]) for number in numbers])
    encode(settings, corpus, features)


def take_turns(sides: dict[str, Callable[[int], None]], rounds: int, block: int) -> dict[str, list[float]]:
    """Seconds a step of each side in each round."""
    for side in sides.values():
        for number in range(WARM):
            side(number)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides.items()) if turn % 2 else list(sides.items())[::-1]
        for name, side in order:
            began = time.perf_counter()
            for number in range(WARM + turn * block, WARM + (turn + 1) * block):
                side(number)
            seconds[name].append((time.perf_counter() - began) / block)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of one side's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def alone(features: Path, batch: int, rounds: int, block: int) -> None:
    """One process: bare, plain and supervised in turn."""
    steps = WARM + rounds * block
    with tempfile.TemporaryDirectory() as place:
        sides = {
            "bare": bare(settings_of(steps, batch, False), features, steps),
            "ours": ours(settings_of(steps, batch, False), features, Path(place)),
            "ours, supervised": ours(settings_of(steps, batch, True), features, Path(place)),
            "ours, half replayed": ours(settings_of(steps, batch, False, replayed=True), features, Path(place)),
        }
        seconds = take_turns(sides, rounds, block)
    for name, times in seconds.items():
        print(f"{name}: {batch / statistics.median(times):.1f} samples/s, {1000 * statistics.median(times):.1f} ms")
    supervised = ratio(seconds, "ours, supervised", "ours")
    print(f"step time, supervised / plain: {supervised:.3f}")
    print(f"the same, a mean over the steps of the default schedule: {1 + supervised_share() * (supervised - 1):.3f}")
    print(f"step time, half of it replayed / plain: {ratio(seconds, 'ours, half replayed', 'ours'):.3f}")
    print(f"samples/s, ours / bare: {ratio(seconds, 'bare', 'ours'):.3f}")


def supervised_share(steps: int = 1000) -> float:
    """Share of the steps in which the default schedule supervises at all; in the others the projector does not run."""
    from training.teach.supervision import schedule

    settings = SupervisionSettings(enabled=True)
    return sum(schedule(settings, step, steps).supervised for step in range(steps)) / steps


def together(features: Path, batch: int, steps: int) -> None:
    """Two processes against one of half the batch, each started by the launcher."""
    from training.launch.launch import fine_tune

    taken = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as place:
            settings = settings_of(steps, batch * processes // 2, False, processes)
            record = fine_tune(settings, features, Path(place) / "candidate", Path(place) / "curves.jsonl")
            taken[processes] = record.seconds["training"] / steps
    print({count: f"{1000 * seconds:.1f} ms a step" for count, seconds in taken.items()})
    print(f"share of the step that the second process costs: {1 - taken[1] / taken[2]:.3f}")


def as_in_training() -> None:
    """Run this command in the environment of a training process, if it does not yet."""
    from training.launch.processes import python_environment

    environment = python_environment(1)
    if environment != os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.training_step", *sys.argv[1:]], environment)


def main() -> None:
    """Encode what is needed and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256, help="avatars to encode and train on")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block", type=int, default=5, help="steps between two changes of side")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    asked = parser.parse_args()
    as_in_training()
    BATCH[0] = asked.batch
    with tempfile.TemporaryDirectory() as place:
        features = Path(place) / "features"
        encode_some(settings_of(1, asked.batch, True, replayed=True), asked.pictures, features)
        if asked.processes == 2:
            together(features, asked.batch, asked.rounds * asked.block)
        else:
            alone(features, asked.batch, asked.rounds, asked.block)


if __name__ == "__main__":
    main()
