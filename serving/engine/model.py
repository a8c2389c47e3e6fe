"""A loaded bundle at work: reads prompts, takes one step with a batch, decodes. One thread at a time uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from serving.backend import BackendError, Drawn, RefusedError, UnusableError
from serving.engine.picture import Picture, Plan
from serving.engine.text import TextCache
from serving.engine.weights import Weights
from serving.users import Users
from training.encode.encoders import joined
from training.errors import TrainingError
from training.families import family_of
from training.families.drawing import BROKEN, PRECISION, is_finite, picture
from training.families.family import check_weights


class Model:
    """The bundle at ``folder``, named ``name``, which was judged with ``sampling``; loaded in its ``precision``.

    Raises:
        UnusableError: it does not load, weights of it are missing, or it is sampled by another scheduler.
    """

    def __init__(self, name: str, folder: Path, sampling: Mapping[str, Any], device: str) -> None:
        self.name, self.sampling, self.device = name, dict(sampling), torch.device(device)
        try:
            self.family = family_of(folder)
            self.plan = Plan.of(self.family, sampling)
            self.pipeline = self.family.load_pipeline(sampling.get("precision", PRECISION))
            expected = {name: tuple(t.shape) for name, t in self.pipeline.transformer.state_dict().items()}
            check_weights(folder / "transformer", expected)
            self.encoders = self.family.encoders_digest()
            self.weights = Weights(folder, self.pipeline)
            self.pipeline.to(self.device)
        except (TrainingError, RefusedError, *BROKEN) as error:
            raise UnusableError(f"the bundle at {folder} cannot be served: {error}") from error
        scheduler = self.pipeline.scheduler
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.stochastic_sampling:
            raise UnusableError(
                f"{folder} is sampled by {type(scheduler).__name__}; only FlowMatchEuler without noise is"
            )
        self.limits: dict[tuple[int, int], int] = {}
        """Rows of the largest useful batch, by height and width; models of one architecture share them."""
        self.pictures_per_second = 0.0
        self._event: Any = None
        self.users = Users()
        """Drawings that were asked for and have not ended."""

    @property
    def transformer(self) -> Any:
        """The MM-DiT."""
        return self.pipeline.transformer

    def is_like(self, other: Model) -> bool:
        """Whether what was measured of ``other``, loaded beside it, holds for this model too: only weights differ."""
        mine, others = (
            [{k: v for k, v in part.config.items() if not k.startswith("_")} for part in (one.transformer, one.vae)]
            for one in (self.pipeline, other.pipeline)
        )
        return mine == others and self.transformer.dtype == other.transformer.dtype and self.plan == other.plan

    def limit(self, height: int, width: int) -> int:
        """The most rows of a batch of pictures of this size; as many tokens as were measured, for another size."""
        if (height, width) in self.limits or not self.limits:
            return self.limits.get((height, width), 1)
        (high, wide), rows = next(iter(self.limits.items()))
        return max(1, rows * high * wide // (height * width))

    def read(self, prompt: str, longest: int, cache: TextCache) -> dict[str, Tensor]:
        """Conditioning of a prompt, read by itself, so that it is the same in any company.

        Raises:
            RefusedError: the encoders cannot read it.
        """

        def encode() -> dict[str, Tensor]:
            made = self.family.encode_captions(self.pipeline, [prompt], longest, self.device)
            return {name: tensor for name, tensor in made.items() if name != "truncated"}

        try:
            kept = cache.get((self.encoders, prompt, longest), encode)
        except (ValueError, TypeError) as error:
            raise RefusedError(f"the prompt cannot be read: {error}") from error
        return self.family.prepare(dict(kept), nulls=longest)

    def begin(self, one: Picture, cache: TextCache) -> None:
        """Read the prompt, draw the noise, lay out the course.

        Raises:
            RefusedError: see `read`.
        """
        plan = one.plan
        prompts = [one.drawing.prompt, self.family.unconditional][: plan.rows]
        one.text = [self.read(prompt or "", plan.longest, cache) for prompt in prompts]
        timesteps, levels = self.family.noise_levels(self.pipeline.scheduler, plan.steps, plan.height, plan.width)
        one.timesteps, one.levels = timesteps.tolist(), levels.tolist()
        first = self.family.first_latents(one.drawing.seed, plan.height, plan.width, self.transformer.dtype)
        one.latents = first.to(self.device)

    def velocity(self, latents: Tensor, timesteps: Tensor, text: dict[str, Tensor], guidance: Tensor) -> Tensor:
        """One forward of the MM-DiT: (B, C, h, w), each row at its own timestep and guidance, both (B,)."""
        velocity: Tensor = self.family.predict(self.transformer, latents, timesteps, text, guidance)
        return velocity

    def pace(self) -> None:
        """Let a GPU fall behind by one step at most: who joins, leaves or is cancelled is heard at the next."""
        if self.device.type == "cuda":
            before, self._event = self._event, torch.cuda.Event()
            self._event.record()
            if before is not None:
                before.synchronize()

    def show(self, one: Picture, latents: Tensor) -> Drawn:
        """A preview or the finished picture, of ``latents`` (1, C, h, w), decoded by itself.

        Raises:
            BackendError: it holds NaN.
        """
        decoded = self.family.decode(self.pipeline.vae, latents)
        pixels = self.pipeline.image_processor.postprocess(decoded.float(), output_type="np")[0]
        if not is_finite(decoded.float().cpu().numpy()):
            raise BackendError(f"{self.name} draws NaN for seed {one.drawing.seed}: its weights are broken")
        one.lap("decode")
        return Drawn(picture(pixels), one.step, one.plan.steps, dict(one.seconds))


class Batch:
    """Pictures that share forwards, until one joins or leaves. Those with guidance come first."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.members = list(pictures)
        self._order = sorted(self.members, key=lambda one: -one.plan.rows)
        self._model = self.members[0].model
        device = self._model.device
        self._guided = sum(one.plan.rows - 1 for one in self._order)
        unconditional = [one.text[1] for one in self._order[: self._guided]]
        self._text = joined([one.text[0] for one in self._order] + unconditional)
        scales = torch.tensor([one.plan.guidance for one in self._order], device=device)
        self._scales = torch.cat([scales, scales[: self._guided]])
        together = min(one.plan.steps - one.step for one in self._order)
        courses = [
            (one.timesteps[one.step :][:together], one.levels[one.step :][: together + 1]) for one in self._order
        ]
        timesteps, levels = (torch.tensor(rows).T.contiguous().to(device) for rows in zip(*courses, strict=True))
        self._timesteps, self._levels = torch.cat([timesteps, timesteps[:, : self._guided]], dim=1), levels
        self._done = 0

    @property
    def rows(self) -> int:
        """Rows of its forward."""
        return len(self._order) + self._guided

    def step(self) -> None:
        """One forward and one Euler step. The pictures stay as they were where it raises."""
        guided, number = self._guided, self._done
        latents = torch.cat([one.latents for one in self._order])
        rows = torch.cat([latents, latents[:guided]])
        velocity = self._model.velocity(rows, self._timesteps[number], self._text, self._scales)
        conditional, led = velocity[: len(latents)], velocity[len(latents) :]
        if guided:
            scale = self._scales[:guided, None, None, None].to(velocity.dtype)
            with_guidance = self._model.family.guide(conditional[:guided], led, scale)
            conditional = torch.cat([with_guidance, conditional[guided:]])
        level, following = self._levels[number : number + 2, :, None, None, None]
        stepped = (latents.float() + (following - level) * conditional).to(velocity.dtype)
        self._done += 1
        for index, one in enumerate(self._order):
            one.step += 1
            one.latents = stepped[index : index + 1]
            one.lap("steps")
            if one.step in one.previews:
                clean = latents[index : index + 1].float() - level[index] * conditional[index : index + 1]
                one.clean = clean.to(velocity.dtype)
        self._model.pace()
