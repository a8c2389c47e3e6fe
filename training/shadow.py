"""The exponential moving average of the weights, on the optimizer's fp32 shards.

ZeRO keeps the fp32 master weights in flat shards, one for each process and parameter group. Averaging those costs
each process only its own share, and loses nothing to a half-precision forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ShadowWeights:
    """w̄ ← d w̄ + (1 - d) w after every real optimizer step, d = min(decay, (1 + s) / (10 + s))."""

    def __init__(self, zero_optimizer: Any, decay: float) -> None:
        self._masters: list[Tensor] = zero_optimizer.single_partition_of_fp32_groups
        self._shadow = [master.detach().clone() for master in self._masters]
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of an optimizer step that was applied."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(self._shadow, self._masters, 1 - decay)

    @torch.no_grad()
    def gather(self, model: nn.Module, prefix: str) -> dict[str, Tensor]:
        """The averaged parameters whose name begins with ``prefix``, by name without it, fp32, on the CPU.

        Every process must call it: each parameter is put together from all shards.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        self._swap()
        averaged = {
            name.removeprefix(prefix): safe_get_full_fp32_param(parameter).clone().cpu()
            for name, parameter in model.named_parameters()
            if name.startswith(prefix) and parameter.requires_grad
        }
        self._swap()
        return averaged

    def _swap(self) -> None:
        for master, shadow in zip(self._masters, self._shadow, strict=True):
            kept = master.data.clone()
            master.data.copy_(shadow)
            shadow.copy_(kept)
