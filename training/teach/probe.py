"""How supervision and velocity loss pull at the tapped image stream: together, or against each other.

Both gradients with respect to H come for nothing out of the usual backward pass: supervision reads H through a branch
of its own, whose gradient is the supervision's, and the gradient at H itself is the sum of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class GradientProbe:
    """Catches the gradients at H of the backward passes while it is ``listening``."""

    def __init__(self) -> None:
        self.listening = False
        self._supervision: Tensor | None = None
        self._sums: Tensor | None = None

    def branch(self, stream: Tensor) -> Tensor:
        """H as the supervision is to read it: (B, T, D)."""
        if not (self.listening and stream.requires_grad):
            return stream
        branch = stream.view_as(stream)
        branch.register_hook(self._catch_supervision)
        stream.register_hook(self._catch_total)
        return branch

    def _catch_supervision(self, gradient: Tensor) -> None:
        self._supervision = gradient.detach().clone()

    def _catch_total(self, gradient: Tensor) -> None:
        if self._supervision is None:  # the supervision was cut off from H
            return
        supervision, total = self._supervision.float(), gradient.detach().float()
        flow = total - supervision
        sums = torch.stack([(supervision * flow).sum(), supervision.square().sum(), flow.square().sum()]).double()
        self._sums = sums if self._sums is None else self._sums + sums
        self._supervision = None

    def take(self) -> Tensor | None:
        """Inner product of both gradients and their squared norms, (3,), over this process's samples; then forget."""
        sums, self._sums = self._sums, None
        return sums


def agreement(sums: Sequence[float]) -> tuple[float | None, float | None]:
    """Cosine of the two gradients, and the supervision's length over the flow's; None where one of them is zero."""
    product, supervision, flow = sums
    if supervision <= 0 or flow <= 0:
        return None, None
    return product / math.sqrt(supervision * flow), math.sqrt(supervision / flow)
