"""What every training loop here needs: batches, a learning-rate curve, an average of the weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)


def batches(size: int, batch: int, steps: int, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(step, row indices): shuffled epochs without end, cut off after `steps`."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(size, generator=generator)])
        yield step, order[:batch]
        order = order[batch:]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


class Average:
    """An exponential moving average of a network's weights."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """One optimizer step later; the decay warms up."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def applied(self, network: Network) -> Network:
        """A copy of the network that carries the average."""
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(self.weights)
        return averaged.eval()


class Progress:
    """Prints every `every` steps: the step, the mean of each figure since, and the seconds so far."""

    def __init__(self, name: str, steps: int, every: int = 100) -> None:
        self.name, self.steps, self.every = name, steps, every
        self.sums: dict[str, float] = {}
        self.since, self.start = 0, time.monotonic()

    def __call__(self, step: int, **figures: float) -> None:
        for key, value in figures.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)
        self.since += 1
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            shown = "  ".join(f"{key} {value / self.since:.4f}" for key, value in self.sums.items())
            seconds = time.monotonic() - self.start
            print(f"{self.name} {step + 1}/{self.steps}  {shown}  {seconds:.0f} s", flush=True)
            self.sums, self.since = {}, 0
