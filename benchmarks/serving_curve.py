"""What the engine makes of a machine: `python -m benchmarks.serving_curve [--device cuda] [--quick] [--wide]`.

First the limit: pictures a second of a bare loop over the transformer (forwards, guidance and Euler steps of a fixed
batch, without text and decoding) at 1, 2, 4, 8 and 16 pictures, and the engine with as many pictures in work, text and
decoding included; both take turns, and each figure is a median. Then: one picture at a time against plain diffusers;
short requests among long ones against whole-request batching, both sides fed by the same arrivals; and what cancelling
leaves behind. The last line is the engine's pictures a second over the bare loop's at the largest batch.

The avatars' base model is small; ``--wide`` takes a transformer of random weights, 12 blocks of width 1024 and 1,024
image tokens, in its place. Needs torch, diffusers, transformers and rfc8785 only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.backend import BackendError, Drawing, Drawn
from serving.engine.backend import BuiltIn
from serving.engine.model import Model
from training.encode.encoders import joined

AVATARS = Path(__file__).parents[1] / "examples" / "avatars"
MODEL = "model"
WORDS = ("red", "blue", "green", "black", "white", "brown", "grey", "blond")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batches: tuple[int, ...]
    rounds: int
    steps: int
    alone: int
    arrivals: int
    cancels: int


FULL = Size((1, 2, 4, 8, 16), 5, 20, 20, 60, 1000)
QUICK = Size((1, 4, 16), 2, 20, 5, 24, 200)


def wide_bundle(folder: Path) -> Path:
    """The avatars' base with a larger transformer of random weights."""
    import torch
    from diffusers import SD3Transformer2DModel

    shutil.copytree(AVATARS / "models" / "base", folder, ignore=shutil.ignore_patterns("transformer"))
    config = json.loads((AVATARS / "models" / "base" / "transformer" / "config.json").read_text())
    more = {"num_layers": 12, "num_attention_heads": 16, "attention_head_dim": 64, "caption_projection_dim": 1024}
    torch.manual_seed(0)
    model = SD3Transformer2DModel.from_config(config | more | {"sample_size": 64, "pos_embed_max_size": 64})
    model.save_pretrained(folder / "transformer")
    return folder


class Bench:
    """One engine and one plain pipeline of the same bundle."""

    def __init__(self, bundle: Path, device: str, size: Size) -> None:
        from training.families import family_of

        family = family_of(bundle)
        self.size, self.device = size, device
        self.sampling = {
            "num_inference_steps": size.steps,
            "guidance_scale": 2.5,
            "max_sequence_length": 1,
            "height": family.resolution,
            "width": family.resolution,
        }
        self.bundle, self.family = bundle, family
        self.pipeline = family.load_pipeline().to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.backend = BuiltIn(device=device)
        self._count = 0

    async def load(self) -> None:
        """Load and measure the engine's side."""
        await self.backend.load(MODEL, self.bundle, self.sampling)
        await self.backend.warm(MODEL)

    @property
    def model(self) -> Model:
        """The engine's."""
        return self.backend._models[MODEL]

    def drawing(self, prompt: str, **sampling: Any) -> Drawing:
        """The next request."""
        self._count += 1
        return Drawing(str(self._count), prompt, self._count, self.sampling | sampling)

    async def draw(self, prompt: str, **sampling: Any) -> Drawn:
        """The engine's picture."""
        return [drawn async for drawn in self.backend.generate(MODEL, self.drawing(prompt, **sampling))][-1]

    def plain(self, prompts: list[str], **sampling: Any) -> None:
        """The pipeline's pictures."""
        import torch

        seeds = [torch.Generator("cpu").manual_seed(number) for number in range(len(prompts))]
        arguments = self.family.sampling_arguments(self.sampling | sampling, len(prompts))
        self.pipeline(prompt=prompts, generator=seeds, output_type="pil", **arguments)

    # The curve

    def bare(self, pictures: int) -> tuple[float, ...]:
        """Pictures a second, by both `clocks`, of a bare loop over the engine's transformer, in its thread."""
        import torch

        model, plan = self.model, self.model.plan
        first = model.family.first_latents(0, plan.height, plan.width, torch.float32).to(model.device)
        latents = first.expand(pictures, -1, -1, -1).contiguous()
        text = joined([model.read("", plan.longest, self.backend._text)] * pictures * plan.rows)
        timesteps, levels = model.family.noise_levels(model.pipeline.scheduler, plan.steps, plan.height, plan.width)
        times = timesteps[:, None].expand(-1, pictures * plan.rows).to(model.device)
        levels, scale = levels.to(model.device), torch.full((pictures, 1, 1, 1), plan.guidance, device=model.device)
        guidance = torch.full((pictures * plan.rows,), plan.guidance, device=model.device)
        self.wait()
        began = self.clocks()
        for step in range(plan.steps):
            velocity = model.velocity(torch.cat([latents] * plan.rows), times[step], text, guidance)
            if plan.rows == 2:
                velocity = model.family.guide(*velocity.chunk(2), scale)
            latents = latents + (levels[step + 1] - levels[step]) * velocity
        self.wait()
        return tuple(pictures / (after - before) for before, after in zip(began, self.clocks(), strict=True))

    def clocks(self) -> tuple[float, float]:
        """Seconds by the wall, and of the engine's thread; the second knows nothing of what else the machine does."""
        return time.perf_counter(), time.thread_time()

    async def in_engine(self, work: Callable[[], Any]) -> Any:
        """Have the engine's thread do something."""
        return await asyncio.wrap_future(self.backend._worker.call(work))

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    async def together(self, pictures: int) -> tuple[float, ...]:
        """Pictures a second, by both `clocks`, of the engine with so many in work all the time."""
        each = 3

        async def client(number: int) -> None:
            for _ in range(each):
                await self.draw(f"a portrait of a person with {WORDS[number % len(WORDS)]} hair")

        began = await self.in_engine(self.clocks)
        await asyncio.gather(*(client(number) for number in range(pictures)))
        ended = await self.in_engine(self.clocks)
        return tuple(each * pictures / (after - before) for before, after in zip(began, ended, strict=True))

    async def curve(self) -> float:
        """The table of both sides; gives the ratio at the largest batch."""
        import torch

        model, plan, ratio = self.model, self.model.plan, 0.0
        measured = dict(model.limits)
        print(f"largest useful batch: {model.limit(plan.height, plan.width)} rows; {plan.rows} rows a picture")
        print("pictures  bare/s  engine/s  ratio  ratio of CPU time")
        for pictures in self.size.batches:
            model.limits[plan.height, plan.width] = pictures * plan.rows
            sides = []
            for _ in range(self.size.rounds + 1):
                bare = await self.in_engine(lambda n=pictures: self.bare(n))  # type: ignore[misc]
                sides.append((*bare, *await self.together(pictures)))
            bare, _, ours, _ = (statistics.median(side) for side in zip(*sides[1:], strict=True))
            ratio, thread = (statistics.median(s[2 + c] / s[c] for s in sides[1:]) for c in (0, 1))
            apart = f"{thread:.3f}" if self.device == "cpu" and torch.get_num_threads() == 1 else "-"
            print(f"{pictures:8} {bare:7.2f} {ours:9.2f} {ratio:6.3f}  {apart}")
        model.limits = measured
        return ratio

    # Alone

    async def alone(self) -> None:
        """One picture at a time: the engine with new and with known text, and the plain pipeline, in turn."""
        new, known, plain = [], [], []
        for number in range(self.size.alone + 2):
            prompt = f"a portrait of a person with {WORDS[number % len(WORDS)]} hair, {number}"
            for series, work in (
                (plain, lambda p=prompt: asyncio.to_thread(self.plain, [p])),  # type: ignore[misc]
                (new, lambda p=prompt: self.draw(p)),  # type: ignore[misc]
                (known, lambda p=prompt: self.draw(p)),  # type: ignore[misc]
            ):
                began = time.perf_counter()
                await work()
                series.append(time.perf_counter() - began)
        base = statistics.median(plain[2:])
        print(f"alone, plain diffusers: {1000 * base:.1f} ms")
        for name, series in (("new", new), ("cached", known)):
            ratio = statistics.median(ours / theirs for ours, theirs in zip(series[2:], plain[2:], strict=True))
            print(f"alone, {name} text / plain diffusers: {ratio:.3f}")

    # Short among long

    async def mixed(self) -> None:
        """4-step requests among 28-step ones, at 0.7 of what the engine gives when it is full."""
        dice = random.Random(7)
        steps = [4 if dice.random() < 0.4 else 28 for _ in range(self.size.arrivals)]
        rate = 0.7 * self.model.pictures_per_second * self.size.steps / statistics.mean(steps)
        moments, now = [], 0.0
        for _ in steps:
            moments.append(now)
            now += dice.expovariate(rate)
        ours = await self._arrive(steps, moments, lambda n: self.draw("a portrait", num_inference_steps=n))
        whole = Whole(self)
        theirs = await self._arrive(steps, moments, whole.draw)
        await whole.close()
        for name, count in (("short", 4), ("long", 28)):
            sides = [_p95([s for s, n in zip(side, steps, strict=True) if n == count]) for side in (ours, theirs)]
            ratio = sides[0] / sides[1]
            print(f"{name}, p95: engine {sides[0]:.2f} s, whole requests {sides[1]:.2f} s, ratio {ratio:.3f}")

    async def _arrive(
        self, steps: list[int], moments: list[float], draw: Callable[[int], Awaitable[Any]]
    ) -> list[float]:
        began = time.perf_counter()

        async def one(count: int, moment: float) -> float:
            await asyncio.sleep(moment)
            await draw(count)
            return time.perf_counter() - began - moment

        return list(await asyncio.gather(*(one(*pair) for pair in zip(steps, moments, strict=True))))

    # Cancels

    async def cancels(self) -> None:
        """Each is cancelled after its first step; counts the steps that it still took, and what memory grew by."""
        late, grown = [], []
        for number in range(self.size.cancels):
            if number == self.size.cancels // 5:
                gc.collect()
                grown.append(_memory(self.device))
            drawing = self.drawing("a portrait", num_inference_steps=50)
            stream = self.backend.generate(MODEL, drawing)
            task = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            one = self.backend._pictures[drawing.id]
            while one.step < 1:
                await asyncio.sleep(0.0005)
            at = one.step
            self.backend.cancel(drawing.id)
            with contextlib.suppress(BackendError):
                await task
            await stream.aclose()
            while self.backend.load_now().active:
                await asyncio.sleep(0.0005)
            late.append(one.step - at)
        gc.collect()
        grown.append(_memory(self.device))
        held = len(self.backend._pictures) + self.backend.load_now().active + self.model.users.count
        print(
            f"{self.size.cancels} cancels: at most {max(late)} steps after the cancel (a step begun is finished), "
            f"{held} pictures left, memory grew by {(grown[-1] - grown[0]) / 2**20:.1f} MiB"
        )


class Whole:
    """Batching of whole requests by the plain pipeline: all that wait for equal steps begin and end together."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        plan = bench.model.plan
        self._most = max(1, bench.model.limit(plan.height, plan.width) // plan.rows)
        self._line: list[tuple[int, asyncio.Future[None]]] = []
        self._come = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    async def draw(self, steps: int) -> None:
        """Wait for a picture of so many steps."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((steps, done))
        self._come.set()
        await done

    async def _serve(self) -> None:
        while True:
            await self._come.wait()
            steps = self._line[0][0]
            batch = [waiting for waiting in self._line if waiting[0] == steps][: self._most]
            self._line = [waiting for waiting in self._line if waiting not in batch]
            prompts = ["a portrait"] * len(batch)
            await asyncio.to_thread(self._bench.plain, prompts, num_inference_steps=steps)
            for _, done in batch:
                done.set_result(None)
            if not self._line:
                self._come.clear()

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _p95(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]


def _memory(device: str) -> float:
    """Bytes held: on the GPU those allocated, on the CPU the resident set."""
    import torch

    if device == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def measure(bench: Bench, parts: list[str]) -> None:
    """All of it, the ratio last."""
    try:
        await bench.load()
        ratio = 0.0
        for part in ("alone", "mixed", "cancels", "curve"):
            if part in parts:
                ratio = await getattr(bench, part)()
        if "curve" in parts:
            print(f"engine / bare at {bench.size.batches[-1]} pictures: {ratio:.3f}")
    finally:
        await bench.backend.close()


def main() -> None:
    """Measure."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--wide", action="store_true", help="a larger transformer of random weights")
    parser.add_argument("--parts", nargs="+", default=["alone", "mixed", "cancels", "curve"])
    asked = parser.parse_args()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as place:
        bundle = wide_bundle(Path(place) / "wide") if asked.wide else AVATARS / "models" / "base"
        asyncio.run(measure(Bench(bundle, asked.device, QUICK if asked.quick else FULL), asked.parts))


if __name__ == "__main__":
    main()
