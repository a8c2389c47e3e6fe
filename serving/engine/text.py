"""Prompts that were read before, kept as the tensors that condition the MM-DiT."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

Conditioning = dict[str, Tensor]

Key = tuple[str, str, int]
"""Digest of the encoders, prompt, tokens read."""


class TextCache:
    """The most recently used conditioning, at most ``most`` bytes of tensors. Models with equal encoders share it."""

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most
        self._kept: OrderedDict[Key, Conditioning] = OrderedDict()

    def get(self, key: Key, encode: Callable[[], Conditioning]) -> Conditioning:
        """What is kept under ``key``, or what ``encode`` makes, kept from now on."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = encode()
        self._kept[key] = made
        self.bytes += _size(made)
        while self.bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _size(oldest)
        return made

    def __len__(self) -> int:
        return len(self._kept)


def _size(conditioning: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in conditioning.values())
