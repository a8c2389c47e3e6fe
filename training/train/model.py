"""Backbone and projector as one module, and the loss of one batch.

Accelerate with DeepSpeed takes one model; the export takes the backbone's weights out of it again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.nn import functional

from training.encode.features import Features
from training.errors import TrainingError
from training.families.family import PRECISIONS, Family
from training.settings import TrainingSettings
from training.teach.probe import GradientProbe
from training.teach.structure import StructureHeads, check_grid, pool_tokens
from training.teach.supervision import Phase, Projector, Tap, blocks_of, global_losses, local_losses
from training.teach.targets import Target
from training.train.deepspeed_config import deepspeed_config
from training.train.draws import bucket_samples, draw_null_tokens, draw_replay, draw_sample, is_dropped, replay_batch
from training.train.lora import add_adapter

BACKBONE = "backbone."
"""Prefix of the backbone's parameters in `SupervisedTransformer`."""


class Replayed(NamedTuple):
    """One process's share of the replayed inputs of a step, R of them."""

    noisy: Tensor
    """σ ε: (R, C, h, w)."""
    timesteps: Tensor
    """σ times the number of training timesteps: (R,)."""
    conditioning: dict[str, Tensor]
    """What `Family.predict` takes, each (R, ...)."""
    held: Tensor | None
    """The base model's image stream after the tapped block, (R, T, D); None while it is not known yet."""


class Batch(NamedTuple):
    """One process's share of a global batch, B samples."""

    noisy: Tensor
    """x_t = (1 - σ) x_0 + σ ε: (B, C, h, w)."""
    velocity: Tensor
    """ε - x_0, what the MM-DiT is to predict: (B, C, h, w)."""
    timesteps: Tensor
    """σ times the number of training timesteps: (B,)."""
    conditioning: dict[str, Tensor]
    """What `Family.predict` takes, each (B, ...)."""
    target: Target | None
    """C, z_g and what is reported about them; None without supervision."""
    structure: Tensor | None
    """G(F_m) above the diagonal: (B, layers, pairs); None without L_structure."""
    shares: Tensor
    """(B,): each sample's weight in the supervision, 0 where masked; over all processes they average to 1 / B."""
    replayed: Replayed | None = None
    """The replayed inputs that go with them; None without replay."""


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its parts, scalars in fp32, named as in `training.train.curves.CurvePoint`; None: not
    computed."""

    loss: Tensor
    loss_flow: Tensor
    loss_local: Tensor | None = None
    loss_global: Tensor | None = None
    loss_structure: Tensor | None = None
    loss_replay: Tensor | None = None
    target_entropy: Tensor | None = None
    target_variance: Tensor | None = None


class SupervisedTransformer(nn.Module):
    """An MM-DiT whose image stream is tapped and projected to the teacher's space while it trains."""

    def __init__(self, family: Family, features: Features, settings: TrainingSettings) -> None:
        super().__init__()
        self.family = family
        self.backbone = family.load_transformer(settings.precision, deepspeed_config(settings))
        if settings.gradient_checkpointing:
            self.backbone.enable_gradient_checkpointing()
        if settings.method == "lora":
            add_adapter(self.backbone, settings.lora, settings.seed)
        self.guidance = settings.guidance
        self.projector: Projector | None = None
        self.probe = GradientProbe()
        self.structure_heads: StructureHeads | None = None
        self.supervision, self.replay = settings.supervision, settings.replay
        config = self.backbone.config
        width = config.num_attention_heads * config.attention_head_dim
        if settings.supervision.enabled:
            self._tap = Tap(self.backbone, settings.supervision.tap)
            self._grid = features.teacher_grid
            for _, wide, high in features.info.sizes:
                check_grid(family.grid(high // family.vae_factor, wide // family.vae_factor), self._grid)
            torch.manual_seed(settings.seed)
            self.projector = Projector(width, settings.supervision.projector_hidden, features.teacher_width)
        if settings.replay.captions:
            self._held = Tap(self.backbone, settings.replay.tap, 5 / 6, "replay.tap")
        if settings.supervision.structured:
            depths = settings.supervision.structure_depths
            self._structure_taps = [Tap(self.backbone, None, depth) for depth in depths]
            self.structure_heads = StructureHeads(width, len(depths))
        self.to(getattr(torch, PRECISIONS[settings.precision]))  # ZeRO-3 wants one format of all that is sharded

    def forward(self, batch: Batch | Replayed, phase: Phase) -> Losses | Tensor:
        """The losses of ``batch``: the velocity loss, the supervision while ``phase`` has weight, and the replay.

        Of replayed inputs alone: their image stream, (R, T, D).

        Raises:
            TrainingError: the base model's stream for the batch's replayed inputs is not known.
        """
        if isinstance(batch, Replayed):
            return self._stream_of(batch)
        supervised = self.projector is not None and phase.supervised
        for tap in self._taps(phase) if supervised else ():
            tap.arm()
        predicted = self._predict(batch)
        flow = functional.mse_loss(predicted.float(), batch.velocity)
        losses = self._supervised(batch, phase, flow) if supervised else Losses(flow, flow)
        if batch.replayed is None:
            return losses
        if batch.replayed.held is None:
            raise TrainingError("nothing is known to hold the replayed inputs to; give Batches.held, as prepare does")
        likeness = functional.cosine_similarity(
            self._stream_of(batch.replayed).float(), batch.replayed.held.float(), dim=-1
        )
        replay = 1 - likeness.mean()
        return dataclasses.replace(losses, loss=losses.loss + self.replay.weight * replay, loss_replay=replay)

    def _predict(self, inputs: Batch | Replayed) -> Tensor:
        return self.family.predict(self.backbone, inputs.noisy, inputs.timesteps, inputs.conditioning, self.guidance)

    def _stream_of(self, replayed: Replayed) -> Tensor:
        self._held.arm()
        with self._held.last():
            self._predict(replayed)
        return self._held.take()

    def _taps(self, phase: Phase) -> list[Tap]:
        """Those that are read in ``phase``."""
        patches = phase.weight > 0 and bool(self.supervision.local_weight or self.supervision.global_weight)
        structure = phase.structure > 0 and self.structure_heads is not None
        return ([self._tap] if patches else []) + (self._structure_taps if structure else [])

    def _supervised(self, batch: Batch, phase: Phase, flow: Tensor) -> Losses:
        """``flow`` and the supervision; terms that have no weight are not computed."""
        assert self.projector is not None and batch.target is not None
        settings, target = self.supervision, batch.target
        grid = self.family.grid(*batch.noisy.shape[-2:])
        total, local, whole, structure = flow, None, None, None
        if phase.weight > 0 and (settings.local_weight or settings.global_weight):
            projected = self.projector(pool_tokens(self.probe.branch(_stream(self._tap, phase)), grid, self._grid))
            if settings.local_weight:
                local = (local_losses(projected, target.local) * batch.shares).sum()
                total = total + phase.weight * settings.local_weight * local
            if settings.global_weight:
                whole = (global_losses(projected, target.caption) * batch.shares).sum()
                total = total + phase.weight * settings.global_weight * whole
        if phase.structure > 0 and self.structure_heads is not None and batch.structure is not None:
            streams = [_stream(tap, phase) for tap in self._structure_taps]
            structure = (self.structure_heads.losses(streams, grid, batch.structure) * batch.shares).sum()
            total = total + phase.structure * structure
        told = {"target_entropy": target.entropy.mean(), "target_variance": target.variance.mean()}
        return Losses(total, flow, local, whole, structure, **told)


def _stream(tap: Tap, phase: Phase) -> Tensor:
    stream = tap.take()
    return stream.detach() if phase.detached else stream


def compile_blocks(backbone: Any) -> None:
    """Compile every block's forward pass: not the block itself, so that a tap's hook stays outside."""
    for block in blocks_of(backbone):
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]


def parameter_groups(model: SupervisedTransformer, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices, which decay, and biases and norms, which do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # What ZeRO-3 has sharded already is flat, and says its own shape.
    shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in trained]
    matrices = [p for p, shape in zip(trained, shapes, strict=True) if len(shape) > 1]
    rest = [p for p, shape in zip(trained, shapes, strict=True) if len(shape) <= 1]
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class Batches:
    """Makes the batches of one process, each from its step alone."""

    features: Features
    settings: TrainingSettings
    family: Family
    rank: int
    world: int
    held: Tensor | None = None
    """The base model's image stream for each replayed draw, (draws, T, D); None while it is not known."""

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the global batch of ``step``, counted from 0."""
        settings = self.settings
        counts = tuple(count for count, _, _ in self.features.info.sizes)
        everyone = bucket_samples(settings.seed, step, settings.steps, settings.batch_size, counts)
        dropout = self.family.caption_dropout if settings.caption_dropout is None else settings.caption_dropout
        drops = [is_dropped(settings.seed, *sample, dropout) for sample in everyone]
        share = settings.batch_size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        samples, dropped = everyone[mine], drops[mine]
        indices = [index for _, index in samples]
        mean, std = self.features.latents(indices)
        draws = [draw_sample(settings.seed, *sample, tuple(mean.shape[1:])) for sample in samples]
        noise = torch.from_numpy(np.stack([draw.noise for draw in draws]))
        posterior = torch.from_numpy(np.stack([draw.posterior_noise for draw in draws]))
        quantile = torch.tensor([draw.quantile for draw in draws])
        latents = mean + std * posterior
        shift = self.family.time_shift(*latents.shape[-2:])
        sigma = shift * quantile / (1 + (shift - 1) * quantile)
        spread = sigma[:, None, None, None]
        nulls = draw_null_tokens(settings.seed, step, *settings.null_tokens)
        return Batch(
            noisy=torch.lerp(latents, noise, spread),
            velocity=noise - latents,
            timesteps=sigma * self.family.timesteps,
            conditioning=self.family.prepare(self.features.conditioning(indices, dropped), nulls),
            target=self.features.target(indices),
            structure=self.features.structure(indices),
            shares=self._shares(drops, dropped),
            replayed=self._replayed(step) if settings.replay.captions else None,
        )

    def _replayed(self, step: int) -> Replayed:
        replay = self.settings.replay
        return self.replay(replay_batch(self.settings.seed, step, replay.batch_size, replay.draws))

    def replay(self, numbers: Sequence[int]) -> Replayed:
        """This process's share of some replayed draws, of a multiple of `world`."""
        settings, share = self.settings, len(numbers) // self.world
        mine = list(numbers[self.rank * share : (self.rank + 1) * share])
        _, width, height = self.features.info.sizes[0]
        factor = self.family.vae_factor
        shape = (self.family.latent_channels, height // factor, width // factor)
        among, lowest = self.features.replayed, settings.replay.lowest_sigma
        draws = [draw_replay(settings.seed, number, among, lowest, shape) for number in mine]
        sigma = torch.tensor([draw.sigma for draw in draws])
        conditioning = self.features.replayed_conditioning([draw.caption for draw in draws])
        return Replayed(
            noisy=sigma[:, None, None, None] * torch.from_numpy(np.stack([draw.noise for draw in draws])),
            timesteps=sigma * self.family.timesteps,
            conditioning=self.family.prepare(conditioning, settings.null_tokens[0]),
            held=None if self.held is None else self.held[mine],
        )

    def _shares(self, everyone_dropped: list[bool], dropped: list[bool]) -> Tensor:
        """Weights by which the supervision is a mean over all samples of all processes whose caption is not dropped.

        Gradients are averaged over processes, so a sample's weight is world / (such samples in all processes).
        """
        weight = self.world / max(everyone_dropped.count(False), 1)
        return torch.tensor([0.0 if drop else weight for drop in dropped])


def parts(batch: Batch, count: int) -> list[Batch]:
    """``batch`` cut into ``count`` equal parts whose mean loss is the batch's."""
    whole = batch._replace(shares=batch.shares * count)
    return [recursively_apply(lambda tensor, number=n: tensor.chunk(count)[number], whole) for n in range(count)]
