"""Feature supervision: the tap on the image branch, the projector, its losses and their schedule.

The tapped image stream H of one block is pooled to the teacher's patch grid, projected to the teacher's
space and pulled towards the vision-aligned text target C (`training.teach.targets`) and the caption's embedding z_g:

    L_local  = 1 - mean cos(P(H), C)
    L_global = 1 - cos(mean P(H), z_g)
    L        = L_flow + λ(s) (L_local + α L_global) + μ(s) L_structure

L_structure (`training.teach.structure`) compares similarities of patches with those that a vision model sees.

Nothing of it is left in the exported model. The method follows the abstract of arXiv 2605.20640; where the
abstract is silent, this is a choice of ours: the tap, the projector, the losses and the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError
from training.settings import SupervisionSettings
from training.teach.structure import layers_at

_LISTS = ("transformer_blocks", "single_transformer_blocks")
"""An MM-DiT's lists of blocks in the order in which they run; only FLUX has the second."""


def blocks_of(backbone: Any) -> list[nn.Module]:
    """The blocks of an MM-DiT in the order in which they run, FLUX's single-stream blocks after its joint ones. All
    return ``(encoder_hidden_states, hidden_states)``: text stream, image stream."""
    return [block for name in _LISTS for block in getattr(backbone, name, ())]


class Tap:
    """Catches the image stream of one block in a forward pass, and keeps it no longer than that.

    The block is the one of this ``index``, or, where that is None, the one at this ``share`` of the depth.

    Gradient checkpointing runs a block again in the backward pass: only the first firing after `arm` counts.
    """

    def __init__(
        self, backbone: Any, index: int | None, share: float = 1 / 3, setting: str = "supervision.tap"
    ) -> None:
        blocks = blocks_of(backbone)
        index = layers_at([share], len(blocks))[0] if index is None else index
        if index >= len(blocks):
            raise TrainingError(
                f"{setting} is {index}, but the base model has blocks 0 to {len(blocks) - 1}; "
                "choose one of these, or leave it out"
            )
        self._backbone, self._index = backbone, index
        self._stream: Tensor | None = None
        self._armed = False
        blocks[index].register_forward_hook(self._catch)

    def _catch(self, block: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        if self._armed:
            self._stream, self._armed = output[1], False

    def arm(self) -> None:
        """Catch the stream of the next forward pass."""
        self._stream, self._armed = None, True

    @contextmanager
    def last(self) -> Iterator[None]:
        """Leave out the blocks behind the tapped one; the backbone's own output is then of no use."""
        whole = {name: blocks for name in _LISTS if (blocks := getattr(self._backbone, name, None)) is not None}
        left = self._index + 1
        try:
            for name, blocks in whole.items():
                setattr(self._backbone, name, blocks[:left])
                left = max(0, left - len(blocks))
            yield
        finally:
            for name, blocks in whole.items():
                setattr(self._backbone, name, blocks)

    def take(self) -> Tensor:
        """H, the tapped image stream, (B, T, D); the tap forgets it.

        Raises:
            TrainingError: the block has not run since `arm`.
        """
        stream, self._stream, self._armed = self._stream, None, False
        if stream is None:
            raise TrainingError("the tapped block did not run; the backbone skips it")
        return stream


class Projector(nn.Sequential):
    """P: image-stream tokens (B, T, width) to the teacher's space (B, T, teacher_width), three SiLU layers."""

    def __init__(self, width: int, hidden: int, teacher_width: int) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, teacher_width),
        )


def local_losses(projected: Tensor, target: Tensor) -> Tensor:
    """L_local of each sample, (B,), in fp32: 1 - mean over patches of cos(P(H), C), both (B, T_v, d)."""
    return 1 - functional.cosine_similarity(projected.float(), target.float(), dim=-1).mean(dim=-1)


def global_losses(projected: Tensor, caption: Tensor) -> Tensor:
    """L_global of each sample, (B,), in fp32: 1 - cos(mean over patches of P(H), z_g); z_g is (B, d)."""
    return 1 - functional.cosine_similarity(projected.float().mean(dim=1), caption.float(), dim=-1)


@dataclass(frozen=True)
class Phase:
    """How one step is supervised."""

    weight: float
    """λ(s)."""
    detached: bool
    """The tapped streams are detached: only the projectors learn from the supervision."""
    structure: float = 0.0
    """μ(s)."""

    @property
    def supervised(self) -> bool:
        """Whether anything is supervised in this step."""
        return self.weight > 0 or self.structure > 0


def schedule(settings: SupervisionSettings, step: int, steps: int) -> Phase:
    """λ(s) and μ(s) of ``step``, counted from 0, of ``steps``: projector-only warm-up, ramp, cosine decay to zero."""
    warm = settings.warmup_fraction * steps
    full = warm + settings.ramp_fraction * steps
    end = settings.decay_end_fraction * steps if settings.decay else math.inf
    if not settings.enabled or step >= end:
        return Phase(0.0, detached=False)
    share = 1.0
    if warm <= step < full:
        share = (step - warm + 1) / (full - warm + 1)
    elif step >= full and settings.decay:
        share = 0.5 * (1 + math.cos(math.pi * (step - full) / (end - full)))
    return Phase(settings.weight * share, detached=step < warm, structure=settings.structure_weight * share)
