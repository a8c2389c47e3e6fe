"""This process's shards of what is trained: fp32 master weights, Adam's moments, and the moving average.

ZeRO keeps the master weights in flat tensors, one or more a parameter group, each process its own part; without ZeRO
each process has them whole. Averaging and saving these costs a process only its own share, and loses nothing to a
half-precision forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state."""


class Masters:
    """Master weights w, and their average w̄ ← d w̄ + (1 - d) w, d = min(decay, (1 + s) / (10 + s)) at update s."""

    def __init__(self, engine: Any, stage: int, decay: float) -> None:
        self._zero = engine.optimizer
        self._stage, self._decay = stage, decay
        self._masters = self._find_masters()
        # A parameter that the model no longer needs gathered may be an empty shard here and not elsewhere.
        self._average = [master.detach().clone() for master in self._masters] if decay else []
        self.updates = 0

    def _find_masters(self) -> list[Tensor]:
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        if self._stage == 2:
            return list(self._zero.single_partition_of_fp32_groups)
        return [parameter for group in self._zero.param_groups for parameter in group["params"]]

    @property
    def _adam(self) -> Any:
        return self._zero.optimizer if self._stage else self._zero

    def forget_gradients(self) -> None:
        """Call before each optimizer step's first backward pass.

        ZeRO-3 keeps gradients from step to step where a parameter gets none (the projector after its supervision has
        ended), and would count them again in the norm by which all are clipped.
        """
        if self._stage == 3:
            for kept in (self._zero.grad_partitions_flat_buffer, *(master.grad for master in self._masters)):
                if kept is not None:
                    kept.zero_()

    @torch.no_grad()
    def average(self) -> None:
        """Take in the weights of an optimizer step that was applied; nothing where the decay is 0."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self._average:
            torch._foreach_lerp_(self._average, [m.data for m in self._masters], 1 - decay)

    @torch.no_grad()
    def gather(self, model: nn.Module, prefix: str, keep: bool) -> dict[str, Tensor]:
        """The averaged trained parameters whose name begins with ``prefix``, by name without it, fp32, on the CPU.

        Every process must call it, because each parameter is put together from all shards; only those that ``keep``
        get any.
        """
        gathered = {}
        from deepspeed.utils import safe_get_full_fp32_param

        self._swap()
        for name, parameter in model.named_parameters():
            if name.startswith(prefix) and parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter) if self._stage else parameter
                if keep:
                    gathered[name.removeprefix(prefix)] = whole.detach().to("cpu", copy=True)
        self._swap()
        return gathered

    def _swap(self) -> None:
        """Exchange the master weights and their average."""
        for master, average in zip(self._masters, self._average, strict=bool(self._average)):
            kept = master.data.clone()
            master.data.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name, in this process's memory."""
        tensors = {}
        for number, master in enumerate(self._masters):
            tensors[f"master.{number}"] = master.data
            for name, moment in self._adam.state.get(master, {}).items():
                tensors[f"{name}.{number}"] = moment
        return tensors | {f"average.{number}": average for number, average in enumerate(self._average)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take up a `state`, and give the model its weights."""
        self.updates = updates
        for number, master in enumerate(self._masters):
            master.data.copy_(tensors[f"master.{number}"])
            if f"step.{number}" in tensors:
                moments = {name: tensors[f"{name}.{number}"].to(master.device, copy=True) for name in MOMENTS}
                self._adam.state[master] = moments
        for number, average in enumerate(self._average):
            average.copy_(tensors[f"average.{number}"])
        self._publish()

    def _publish(self) -> None:
        """Give the model the masters' weights, as an optimizer step does."""
        if self._stage == 2:
            self._zero.update_lp_params()
        if self._stage == 3:
            for number in range(len(self._masters)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
            if self._zero.persistent_parameters:
                self._zero.persistent_parameters[0].partition(self._zero.persistent_parameters)
                self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def loss_scale(self) -> dict[str, float]:
        """What fp16's dynamic loss scale has come to; empty for other formats."""
        scaler = getattr(self._zero, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in _SCALE if hasattr(scaler, name)}

    def restore_loss_scale(self, state: Mapping[str, float]) -> None:
        """Take up a `loss_scale`."""
        for name, value in state.items():
            kind = type(getattr(self._zero.loss_scaler, name))
            setattr(self._zero.loss_scaler, name, kind(value))


_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
