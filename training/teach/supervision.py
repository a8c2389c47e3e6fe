"""Feature supervision: the tap on the image branch, the projector, its losses and their schedule.

The tapped image stream H of one joint block is pooled to the teacher's patch grid, projected to the teacher's
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
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError
from training.settings import SupervisionSettings


class Tap:
    """Catches the image stream of one joint block while the backbone runs.

    Diffusers' joint blocks return ``(encoder_hidden_states, hidden_states)``: text stream, image stream.
    Only the image stream is kept. Gradient checkpointing runs a block again in the backward pass: the first
    firing since `clear` counts.
    """

    def __init__(self, backbone: Any, index: int) -> None:
        blocks: nn.ModuleList = backbone.transformer_blocks
        if index >= len(blocks):
            raise TrainingError(
                f"supervision.tap is {index}, but the base model has joint blocks 0 to {len(blocks) - 1}; "
                "choose one of these, or leave it out for one at about a third of the depth"
            )
        self._stream: Tensor | None = None
        blocks[index].register_forward_hook(self._catch)

    def _catch(self, block: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        if self._stream is None:
            self._stream = output[1]

    def clear(self) -> None:
        """Forget the last stream; call before each forward pass."""
        self._stream = None

    def stream(self) -> Tensor:
        """H, the tapped image stream: (B, T, D).

        Raises:
            TrainingError: the block has not run since `clear`.
        """
        if self._stream is None:
            raise TrainingError("the tapped joint block did not run; the backbone skips it")
        return self._stream


def default_tap(depth: int) -> int:
    """The joint block at about a third of ``depth`` blocks."""
    return max(0, round(depth / 3) - 1)


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
