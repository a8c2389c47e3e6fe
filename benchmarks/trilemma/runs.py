"""The runs of one job, all at once on one device: fine-tuning, checkpoints, drawing, scoring."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.trilemma import stack
from benchmarks.trilemma.arms import (
    ARMS,
    BATCH,
    LOOKS,
    LORA_FASTER,
    LORA_RANK,
    LORA_SCALE,
    MIXES,
    REFERENCE_STRENGTH,
    SHIPPED_TAP,
    TAP,
    Arm,
    Job,
)
from benchmarks.trilemma.base import base_path
from benchmarks.trilemma.judge import PANELS, Decoder, Judge, noises, sample
from benchmarks.trilemma.text import TextTower
from benchmarks.trilemma.worlds import MODELS, SAMPLED
from examples.avatars.portraits import VALUES
from examples.avatars.splits import replayed

AVERAGE, WARM, DROPPED, CLIP = 0.99, 21, 0.1, 1.0
REPLAYED = BATCH // 2
COPY = 0.06
"""A picture nearer than this, root mean square, to one of the set is a copy."""
Sides = tuple[Tensor, Tensor, Tensor, Tensor]
"""Noisy latents, σ, text, pooled text: what the transformer reads."""


class World:
    """A world's tensors on the device."""

    def __init__(self, folder: Path, number: int, device: torch.device) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        self.number, self.device = number, device
        path = folder / f"world{number}.safetensors"
        common = load_file(folder / "common.safetensors")
        with safe_open(path, framework="pt") as stream:
            self.facts: dict[str, Any] = json.loads((stream.metadata() or {})["facts"])
        kept = {n: v.to(device) for n, v in load_file(path).items()}
        self.t = {n: v.float() if v.dtype == torch.float16 else v for n, v in kept.items()}
        self.text, self.pooled = TextTower(device)(common["ids"])
        self.schedules = {int(n.split(".")[1]): v for n, v in common.items() if n.startswith("schedule.")}
        read = load_file(base_path(folder, number))
        self.base = {n: v.float().unsqueeze(0).to(device) for n, v in read.items()}
        self.positions = {"positions": self.base["positions"]}
        vae = load_file(MODELS / "base" / "vae" / "diffusion_pytorch_model.safetensors")
        self.decode = Decoder(vae, device)
        self.judge = Judge(MODELS / "scorers", common["shapes"], device)
        self.replay_rows = torch.arange(1, 513, device=device)
        """The replayed captions' rows in the text table."""
        self.captions = ["", *(p.caption() for p in replayed())]
        self.nothing = (self.text[:1], self.pooled[:1])
        self._samples: dict[int, Tensor] = {}
        self._projectors: dict[tuple[str, tuple[int, ...]], dict[str, Tensor]] = {}
        self._bases: dict[tuple[int, ...], list[dict[str, Any]]] = {}

    def samples(self) -> Tensor:
        """Samples of base′ for the first 256 replayed captions, (256, 8, 16, 16)."""
        return self.drawn(self.replay_rows[:SAMPLED], 900_000)[0]

    def drawn(self, rows: Tensor, first: int) -> Tensor:
        """Samples of base′ for captions, (1, N, 8, 16, 16), their noise from seeds that count from ``first``."""
        if first not in self._samples:
            noise = noises([first + i for i in range(len(rows))]).to(self.device).unsqueeze(0)
            self._samples[first] = sample(self.base, noise, self.text[rows], self.pooled[rows], self.nothing)
        return self._samples[first]

    def set_of(self, seed: int) -> Tensor:
        """Rows of a seed's pictures."""
        return self.t[f"set.{seed}.rows"]

    def target(self, name: str, kind: str, phrases: str) -> tuple[Tensor, Tensor]:
        """C (n, 64, d) and z (n, d) of the set or the replayed pictures ``name``."""
        t = self.t
        parts, z = t[f"{name}.parts"], t[f"{name}.z.{phrases}"]
        if kind == "shuffled":
            partner = t[f"{name}.partner"]
            parts, z = parts[partner], z[partner]
        table = torch.searchsorted(t[f"{name}.phrase.rows"], parts.clamp(min=0))
        return t[f"{name}.A.{kind}"] @ t[f"{name}.phrases.{phrases}"][table], z


class Draws:
    """What chance decides in a job's runs: by seed alone, so that all arms see the same.

    Rows, dropouts and timesteps are drawn on the CPU and are the same everywhere; noise is drawn on the device.
    """

    def __init__(self, world: World, job: Job, arm: Arm) -> None:
        self.world, self.job, self.arm, self.device = world, job, arm, world.device
        tables: list[list[Tensor]] = [[] for _ in range(6)]
        counts = []
        for seed in job.seeds:
            rows = world.set_of(seed)
            counts.append(len(rows))
            for table, drawn in zip(tables, self._of(seed, len(rows)), strict=True):
                table.append(drawn)
        stacked = [torch.stack(table).to(self.device) for table in tables]
        self.index, self.dropped, self.sigma, self.captions, self.replay_sigma, self.fixed = stacked
        most = max(counts)
        self.rows = torch.stack([functional.pad(world.set_of(s), (0, most - len(world.set_of(s)))) for s in job.seeds])
        self.models = torch.arange(len(job.seeds), device=self.device).unsqueeze(1)
        self.chances = [torch.Generator(self.device).manual_seed(7_000_000 + s) for s in job.seeds]
        self.fixed_noise = torch.empty(0)
        if arm.draws:
            once = [torch.Generator(self.device).manual_seed(8_000_000 + s) for s in job.seeds]
            self.fixed_noise = torch.stack([self._normal(g, arm.draws) for g in once])

    def _normal(self, chance: torch.Generator, count: int) -> Tensor:
        return torch.randn(count, 8, 16, 16, generator=chance, device=self.device)

    def _of(self, seed: int, count: int) -> tuple[Tensor, ...]:
        steps, exposures, rng = self.job.steps, self.arm.exposures, np.random.default_rng([61, seed])
        epochs = -(-steps * exposures // count)
        order = np.concatenate([np.random.default_rng([62, seed, e]).permutation(count) for e in range(epochs)])
        index = order[: steps * exposures].reshape(steps, exposures)
        dropped = rng.random((steps, BATCH))[:, :exposures] < DROPPED
        sigma = 1 / (1 + np.exp(-rng.standard_normal((steps, BATCH))))[:, :exposures]
        allowed = self._allowed()
        captions = rng.integers(0, 1 << 30, (steps, REPLAYED)) % len(allowed)
        uniform, normal = rng.random((steps, REPLAYED)), rng.standard_normal((steps, REPLAYED))
        fixed = np.zeros((steps, REPLAYED), dtype=np.int64)
        if self.arm.draws:  # a step takes some of the fixed draws; each has its caption and its σ
            fixed = rng.integers(0, self.arm.draws, (steps, REPLAYED))
            first = np.random.default_rng([63, seed]).integers(0, len(allowed), self.arm.draws)
            levels = np.random.default_rng([64, seed]).random(self.arm.draws)
            captions, uniform = first[fixed], levels[fixed]
        replayed = 0.97 + 0.03 * uniform if self.arm.replay == "noise" else 1 / (1 + np.exp(-normal))
        return (
            torch.from_numpy(index),
            torch.from_numpy(dropped),
            torch.from_numpy(sigma).float(),
            torch.from_numpy(allowed[captions]),
            torch.from_numpy(replayed).float(),
            torch.from_numpy(fixed),
        )

    def _allowed(self) -> np.ndarray:
        """Which replayed captions this arm replays, counted from the first."""
        most = SAMPLED if self.arm.replay == "samples" else len(self.world.replay_rows)
        some = [i for i in range(most) if not self.arm.without or self.arm.without not in self.world.captions[1 + i]]
        return np.array(some[: self.arm.captions or most])

    def own(self, step: int) -> tuple[Sides, Tensor, Tensor, Tensor]:
        """Of the sets' pictures: what the transformer reads, velocities, rows within the sets, dropped captions."""
        world, index = self.world, self.index[:, step]
        drawn = torch.stack([self._normal(chance, 2 * BATCH + REPLAYED) for chance in self.chances])
        self.replay_noise = drawn[:, 2 * BATCH :]
        noise, posterior = drawn[:, : index.shape[1]], drawn[:, BATCH : BATCH + index.shape[1]]
        pictures = self.rows[self.models, index]
        x = world.t["mean"][pictures] + world.t["std"][pictures] * posterior
        sigma, dropped = self.sigma[:, step], self.dropped[:, step]
        captions = torch.where(dropped, 0, world.t["picture.caption"][pictures])
        noisy = torch.lerp(x, noise, sigma[..., None, None, None])
        return (noisy, sigma, world.text[captions], world.pooled[captions]), noise - x, index, dropped

    def replayed(self, step: int) -> tuple[Sides, Tensor]:
        """Of the replayed half, after `own`: what the transformer reads, and velocities towards base′'s samples."""
        world, captions, sigma = self.world, self.captions[:, step], self.replay_sigma[:, step]
        noise = self.fixed_noise[self.models, self.fixed[:, step]] if self.arm.draws else self.replay_noise
        level = sigma[..., None, None, None]
        x = world.samples()[captions] if self.arm.replay == "samples" else torch.zeros_like(noise)
        rows = world.replay_rows[captions]
        return (torch.lerp(x, noise, level), sigma, world.text[rows], world.pooled[rows]), noise - x


def joined(a: Sides, b: Sides) -> Sides:
    """Two halves of a batch as one."""
    return tuple(torch.cat([p, q], dim=1) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def frozen_predict(base: stack.Weights, sides: Sides, tap: int | None) -> tuple[Tensor, Tensor]:
    """Base′ on all models' batches, as one batch of one model."""
    k, b = sides[0].shape[:2]
    flat = [s.reshape(1, k * b, *s.shape[2:]) for s in sides]
    with torch.no_grad():
        velocity, stream = stack.predict(base, flat[0], flat[1], flat[2], flat[3], tap)
    return velocity.view(k, b, *velocity.shape[2:]), stream.view(k, b, *stream.shape[2:]) if tap is not None else stream


def first_projector(k: int, seeds: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """P's first weights, by seed: a norm and three layers, 128 to 256 to 256 to 96, as `training.supervision`."""
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(128, 256), torch.nn.Linear(256, 256), torch.nn.Linear(256, 96)]
        one = {"norm.g": torch.ones(128), "norm.s": torch.zeros(128)}
        for i, layer in enumerate(layers):
            one |= {f"p{i}.w": layer.weight.detach(), f"p{i}.b": layer.bias.detach()}
        models.append(one)
    return {n: torch.stack([m[n] for m in models]).to(device) for n in models[0]}


def project(p: stack.Weights, stream: Tensor) -> Tensor:
    """P(H): (K, B, T, 128) to (K, B, T, 96)."""
    k = stream.shape[0]
    x = functional.layer_norm(stream, (128,)) * p["norm.g"].view(k, 1, 1, -1) + p["norm.s"].view(k, 1, 1, -1)
    x = functional.silu(stack.linear(p, "p0", x))
    return stack.linear(p, "p2", functional.silu(stack.linear(p, "p1", x)))


def text_losses(projected: Tensor, local: Tensor, whole: Tensor) -> Tensor:
    """L_local + 0.5 L_global of each sample, (K, B)."""
    near = 1 - functional.cosine_similarity(projected, local, dim=-1).mean(-1)
    return near + 0.5 * (1 - functional.cosine_similarity(projected.mean(2), whole, dim=-1))


class Trainer:
    """K runs of one arm in one cell."""

    def __init__(self, world: World, job: Job, strengths: tuple[float, ...]) -> None:
        self.world, self.job, self.arm, self.device = world, job, ARMS[job.arm], world.device
        k = len(job.seeds)
        self.draws = Draws(world, job, self.arm)
        self.strengths = torch.tensor(strengths, device=self.device)
        start = {n: v.expand(k, *v.shape[1:]) for n, v in world.base.items() if n != "positions"}
        if self.arm.lora:
            start = stack.adapters(world.base, k, LORA_RANK, 0)
        self.parameters = stack.Parameters(start)
        trained = [self.parameters]
        self.projector: dict[str, Tensor] = {}
        if self.arm.target:
            self.joint = stack.Parameters(first_projector(k, job.seeds, self.device))
            trained.append(self.joint)
            self.targets = self._targets()
            self.schedule = world.schedules[job.steps].tolist()
        elif self.arm.held in ("text", "shuffled"):
            self.projector = fitted_projector(world, job.seeds, {"text": "raw"}.get(self.arm.held, self.arm.held))
        elif self.arm.held == "random":
            self.projector = first_projector(k, job.seeds, self.device)
        self.trained = trained
        self.rate = job.rate * (LORA_FASTER if self.arm.lora else 1.0)
        self.optimizer = stack.optimizer(trained, self.rate)
        self.flow, self.auxiliary = [], []  # type: ignore[var-annotated]

    def _targets(self) -> tuple[Tensor, Tensor]:
        pairs = [self.world.target(f"set.{s}", str(self.arm.target), "own") for s in self.job.seeds]
        most = max(len(z) for _, z in pairs)
        local = torch.stack([functional.pad(c, (0, 0, 0, 0, 0, most - len(c))) for c, _ in pairs])
        return local, torch.stack([functional.pad(z, (0, 0, 0, most - len(z))) for _, z in pairs])

    def weights(self, flat: list[Tensor] | None = None) -> dict[str, Tensor]:
        """The K models' weights, of the parameters or of ``flat``."""
        views = self.parameters.views(flat)
        return stack.merged(self.world.base, views, LORA_SCALE) if self.arm.lora else views | self.world.positions

    def step(self, number: int) -> None:
        """One step of all K runs."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (number + 1) / WARM)
        flow, auxiliary, weight = self._losses(number)
        total = (flow + weight * auxiliary).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._clip()
        self.optimizer.step()
        self.parameters.update_average(min(AVERAGE, (1 + number) / (10 + number)))
        self.flow.append(flow.detach())
        self.auxiliary.append(auxiliary.detach())

    def _clip(self) -> None:
        if len(self.trained) == 1:
            self.parameters.clip(CLIP)
            return
        both = [f for p in self.trained for f in p.flat if f.grad is not None]
        norm = torch.stack([f.grad.square().sum(1) for f in both if f.grad is not None]).sum(0).sqrt()
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        for f in both:
            if f.grad is not None:
                f.grad.mul_(scale)

    def _losses(self, number: int) -> tuple[Tensor, Tensor, Any]:
        """Velocity loss and the rest, (K,) each, and the weight of the rest."""
        arm = self.arm
        sides, velocity, index, dropped = self.draws.own(number)
        own, again = velocity.shape[1], None
        if arm.replay:
            again, towards = self.draws.replayed(number)
            sides = joined(sides, again)
            if arm.held == "prior":
                velocity = torch.cat([velocity, towards], dim=1)
        tap = SHIPPED_TAP if arm.target else TAP if arm.held not in (None, "prior", "velocity") else None
        predicted, stream = stack.predict(self.weights(), *sides, tap=tap)
        flow = (predicted[:, : velocity.shape[1]] - velocity).square().mean((1, 2, 3, 4))
        nothing = torch.zeros_like(flow)
        if arm.target:
            weight, detached = self.schedule[number]
            if not weight and not detached:
                return flow, nothing, 0.0
            return flow, self._text(stream.detach() if detached else stream, index, dropped), weight
        if again is None or arm.held in (None, "prior"):
            return flow, nothing, 0.0
        before, held = frozen_predict(self.world.base, again, tap)
        if arm.held == "velocity":
            return flow, (predicted[:, own:] - before).square().mean((1, 2, 3, 4)), self.strengths
        now = stream[:, own:]
        if arm.held != "stream":
            now = project(self.projector, now)
            with torch.no_grad():
                held = project(self.projector, held)
        return flow, (1 - functional.cosine_similarity(now, held, dim=-1)).mean((1, 2)), self.strengths

    def _text(self, stream: Tensor, index: Tensor, dropped: Tensor) -> Tensor:
        local, whole = (t[self.draws.models, index] for t in self.targets)
        share = (~dropped).float()
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        return (text_losses(project(self.joint.views(), stream), local, whole) * share).sum(1)


def fitted_projector(
    world: World, seeds: tuple[int, ...], kind: str, rounds: int = 40, steps: int = 400
) -> dict[str, Tensor]:
    """P fitted to base′'s stream, then frozen; half on the set, half on replayed pictures as base′ was shown them."""
    if (kind, seeds) in world._projectors:
        return world._projectors[kind, seeds]
    streams, rows = _streams(world, seeds, rounds)
    replay = world.target("replay", kind, "vocabulary")
    sets = [world.target(f"set.{s}", kind, "vocabulary") for s in seeds]
    most = max(len(z) for _, z in sets)
    local = torch.stack([torch.cat([functional.pad(c, (0, 0, 0, 0, 0, most - len(c))), replay[0]]) for c, _ in sets])
    whole = torch.stack([torch.cat([functional.pad(z, (0, 0, 0, most - len(z))), replay[1]]) for _, z in sets])
    rows = torch.where(rows < 0, most - rows - 1, rows)
    fit = stack.Parameters(first_projector(len(seeds), seeds, world.device))
    optimizer = stack.optimizer([fit], 2e-3)
    models = torch.arange(len(seeds), device=world.device).unsqueeze(1)
    chance = torch.Generator().manual_seed(9)
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (number + 1) / 20) * (1 - number / steps)
        some = torch.randint(rows.shape[1], (24,), generator=chance).to(world.device)
        at = rows[:, some]
        loss = text_losses(project(fit.views(), streams[:, some]), local[models, at], whole[models, at])
        optimizer.zero_grad(set_to_none=True)
        loss.mean(1).sum().backward()
        optimizer.step()
    world._projectors[kind, seeds] = {n: v.detach().clone() for n, v in fit.views().items()}
    return world._projectors[kind, seeds]


def _streams(world: World, seeds: tuple[int, ...], rounds: int) -> tuple[Tensor, Tensor]:
    """Base′'s stream on noised pictures, (K, N, 64, 128), and which: rows of the set, or -1 - row of replayed ones."""
    half, t = 16, world.t
    streams, rows = [], []
    chances = [torch.Generator().manual_seed(500 + seed) for seed in seeds]
    for _ in range(rounds):
        latents, captions, index = [], [], []
        for seed, chance in zip(seeds, chances, strict=True):
            own = world.set_of(seed)
            mine = torch.randint(len(own), (half,), generator=chance)
            other = torch.randint(SAMPLED, (half,), generator=chance)
            pictures = own[mine.to(world.device)]
            latents.append(torch.cat([t["mean"][pictures], t["replay.mean"][other.to(world.device)]]))
            captions.append(torch.cat([t["picture.caption"][pictures], world.replay_rows[other.to(world.device)]]))
            index.append(torch.cat([mine, -1 - other]))
        x, said = torch.stack(latents), torch.stack(captions)
        noise = torch.stack([torch.randn(2 * half, 8, 16, 16, generator=c) for c in chances]).to(world.device)
        sigma = torch.stack([torch.sigmoid(torch.randn(2 * half, generator=c)) for c in chances]).to(world.device)
        noisy = torch.lerp(x, noise, sigma[..., None, None, None])
        streams.append(frozen_predict(world.base, (noisy, sigma, world.text[said], world.pooled[said]), TAP)[1])
        rows.append(torch.stack(index))
    return torch.cat(streams, 1), torch.cat(rows, 1).to(world.device)


class Looker:
    """Draws the prompts of a world with K models and says what the scorers find."""

    def __init__(self, world: World, seeds: tuple[int, ...]) -> None:
        self.world, self.seeds = world, seeds
        rows = torch.cat([world.t["report.caption"], world.t["choose.caption"]])
        self.count = len(rows) // 2
        self.text, self.pooled = world.text[rows], world.pooled[rows]
        self.wanted = torch.cat([world.t["report.classes"], world.t["choose.classes"]])
        self.noise = torch.stack([noises([50_000 + 1000 * s + i for i in range(len(rows))]) for s in seeds])
        self.noise = self.noise.to(world.device)
        self.sets = [world.decode(world.t["mean"][world.set_of(s)]).flatten(1) / 255 for s in seeds]
        self.before: dict[str, Tensor] | None = None

    def look(self, weights: stack.Weights) -> list[dict[str, Any]]:
        """One point a model: panels on reported and on choosing prompts, and how they differ from base′'s."""
        k, n = len(self.seeds), self.count
        latents = sample(weights, self.noise, self.text, self.pooled, self.world.nothing)
        pictures = self.world.decode(latents.flatten(0, 1))
        scores = self.world.judge.score(pictures, self.wanted.repeat(k, 1))
        per = {name: value.view(k, 2 * n, *value.shape[1:]) for name, value in scores.items()}
        if self.before is None:
            self.before = {name: per[name] for name in PANELS}
        report = {name: value[:, :n] for name, value in per.items()}
        means = {name: report[name].mean(1).tolist() for name in PANELS}
        choose = {name: per[name][:, n:].mean(1).tolist() for name in PANELS}
        gained = {name: report[name] - self.before[name][:, :n] for name in PANELS}
        spread = {name: (value.std(1) / n**0.5).tolist() for name, value in gained.items()}
        attributes = report["attributes"].mean(1).tolist()
        cosines = report["features"] @ report["features"].mT
        alike = ((cosines.sum((1, 2)) - n) / (n * (n - 1))).tolist()
        near = self._nearest(pictures.view(k, 2 * n, -1)[:, :n] / 255)
        return [
            {
                "report": {name: round(means[name][i], 6) for name in PANELS},
                "choose": {name: round(choose[name][i], 6) for name in PANELS},
                "se": {name: round(spread[name][i], 6) for name in PANELS},
                "attributes": dict(zip(VALUES, (round(x, 4) for x in attributes[i]), strict=True)),
                "diversity": round(1 - alike[i], 4),
                "nearest": round(near[i][0], 4),
                "copies": round(near[i][1], 4),
            }
            for i in range(k)
        ]

    def _nearest(self, pictures: Tensor) -> list[tuple[float, float]]:
        found = []
        for mine, others in zip(pictures, self.sets, strict=True):
            nearest = (
                torch.cdist(mine, others, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
                / mine.shape[1] ** 0.5
            )
            found.append((float(nearest.mean()), float((nearest < COPY).float().mean())))
        return found


def drift(world: World, weights: stack.Weights, k: int) -> list[float]:
    """How far each model's velocities moved from base′'s, (K,): ‖v - v′‖² / ‖v′‖² on choosing prompts.

    A mean of two: on pure noise, and on base′'s own samples of them at σ = 0.5.
    """
    rows = world.t["choose.caption"]
    noise = noises([950_000 + i for i in range(len(rows))]).to(world.device).unsqueeze(0)
    half = torch.lerp(world.drawn(rows, 960_000), noise, 0.5)
    found = torch.zeros(k, device=world.device)
    for x, level in ((noise, 1.0), (half, 0.5)):
        sigma = torch.full((1, len(rows)), level, device=world.device)
        one: Sides = (x, sigma, world.text[rows].unsqueeze(0), world.pooled[rows].unsqueeze(0))
        before = frozen_predict(world.base, one, None)[0]
        with torch.no_grad():
            now = stack.predict(weights, *(s.expand(k, *s.shape[1:]) for s in one))[0]
        found += (now - before).square().sum((1, 2, 3, 4)) / before.square().sum() / 2
    return found.tolist()


def base_lines(world: World, seeds: tuple[int, ...], looker: Looker) -> Iterator[dict[str, Any]]:
    """Base′'s points; they are what `looker` compares with."""
    points = looker.look(stack.spread(world.base, len(seeds)))
    for seed, point in zip(seeds, points, strict=True):
        yield {"key": f"base/w{world.number}/s{seed}", "kind": "base", "world": world.number, "seed": seed,
               "points": {"base": point}, "ceiling": world.facts}  # fmt: skip


def run(
    world: World, job: Job, strengths: tuple[float, ...], looker: Looker | None, steps: int | None = None,
    watch: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """All runs of ``job``; one result each. Without a looker only drift is measured; ``steps`` cuts them short."""
    began, trainer = time.time(), Trainer(world, job, strengths)
    points: list[dict[str, Any]] = [{} for _ in job.seeds]
    last = steps or job.steps

    def look(tag: str, flat: list[Tensor]) -> None:
        if looker is None:
            return
        for mine, point in zip(points, looker.look(_detached(trainer.weights(flat))), strict=True):
            mine[tag] = point

    looked = 0.0
    for number in range(last):
        trainer.step(number)
        if number + 1 in LOOKS[job.steps]:
            since = time.time()
            look(str(number + 1), trainer.parameters.average)
            looked += time.time() - since
    with torch.no_grad():
        end = _detached(trainer.weights(trainer.parameters.average))
        moved = drift(world, end, len(job.seeds))
        if looker is not None:
            for share in MIXES:
                mixed = {
                    n: torch.lerp(world.base[n].expand_as(v), v, share) for n, v in end.items() if n != "positions"
                }
                for mine, point in zip(points, looker.look(mixed | world.positions), strict=True):
                    mine[f"wise{share}"] = point
    seconds = round((time.time() - began) / len(job.seeds), 2)
    flow, auxiliary = torch.stack(trainer.flow), torch.stack(trainer.auxiliary)
    watch(f"{job.key(0)}: {last} steps of {len(job.seeds)}, {time.time() - began:.1f} s, {looked:.1f} s of it looking")
    return [
        {
            "key": job.key(i), "kind": job.kind, "world": world.number, "rate": job.rate, "steps": last, "arm": job.arm,
            "seed": seed, "strength": round(strengths[i], 4), "drift": round(moved[i], 6), "points": points[i],
            "flow": _curve(flow[:, i]), "auxiliary": _curve(auxiliary[:, i]), "seconds": seconds,
        }
        for i, seed in enumerate(job.seeds)
    ]  # fmt: skip


def _detached(weights: stack.Weights) -> dict[str, Tensor]:
    return {n: v.detach() for n, v in weights.items()}


def _curve(losses: Tensor) -> list[float]:
    """Means of 25 steps each."""
    return [round(float(part.mean()), 4) for part in losses.split(25)]


def matched_strength(lines: list[dict[str, Any]], arm: str, rate: float) -> float:
    """λ at which ``arm`` drifts as far as `noise-stream` does with `REFERENCE_STRENGTH`, by interpolating logarithms.

    Raises:
        ValueError: the runs that matching needs are not among ``lines``.
    """
    mine = [x for x in lines if x.get("kind") == "match" and x["rate"] == rate and "drift" in x]
    wanted = [x["drift"] for x in mine if x["arm"] == "noise-stream"]
    tried = sorted((x["strength"], x["drift"]) for x in mine if x["arm"] == arm)
    if not wanted or not tried:
        raise ValueError(f"no matching runs of {arm} at {rate:g}")
    if arm == "noise-stream":
        return REFERENCE_STRENGTH
    strengths = np.log([s for s, _ in tried])
    drifts = np.minimum.accumulate(np.log([d for _, d in tried]))  # more strength, less drift
    return float(np.exp(np.interp(-np.log(wanted[0]), -drifts, strengths)))
