"""The vision-aligned text target: which part of the caption each patch shows, in the teacher's eyes.

    A = softmax(V̂ · Ŝᵀ / τ)        C = A · Ŝ

V̂ are a picture's patches (`Teacher.patch_features`), Ŝ the parts of its caption and a null row (the empty
string: nothing that was said), both of length one; τ is the teacher's temperature. Nothing is centred: in the
assignment that harmed (docs/method.md), in the target it did not help (docs/training.md). No parameters, no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.settings import SupervisionSettings
from training.teach.phrases import Phrasebook

_PARTNERS = 4
"""The stream of draws that partners come from; `training.train.draws` has the others."""


def assign(patches: Tensor, phrases: Tensor, temperature: float, said: Tensor | None = None) -> Tensor:
    """The assignment A, (..., T_v, S).

    ``patches``: V̂, (..., T_v, d). ``phrases``: Ŝ, (..., S, d). ``said``: (..., S) bool, False where a row of
    ``phrases`` is padding.
    """
    scores = patches @ phrases.mT / temperature
    if said is not None:
        scores = scores.masked_fill(~said.unsqueeze(-2), -torch.inf)
    return torch.softmax(scores, dim=-1)


class Target(NamedTuple):
    """What the image stream of B samples is pulled towards."""

    local: Tensor
    """C, or V̂ where the target is vision: (B, T_v, d) fp32."""
    caption: Tensor
    """z_g, the caption as a whole, or the mean patch where the target is vision; of length one: (B, d) fp32."""
    entropy: Tensor
    """Of A, in nats, a mean over patches: (B,); 0 where the target is vision."""
    variance: Tensor
    """Of the local target across patches, summed over features: (B,)."""
    null_share: Tensor
    """A's mass on the null row, a mean over patches: (B,); 0 where the target is vision."""


class Targets:
    """Makes the targets of a corpus from the teacher's features, as the supervision settings ask."""

    def __init__(
        self,
        settings: SupervisionSettings,
        rows: Sequence[int],
        book: Phrasebook,
        string_features: Tensor,
        temperature: float,
        seed: int,
    ) -> None:
        """Args:
        rows: for each sample the number of its caption in ``book``, in which the first is that of dropped captions.
        string_features: the teacher's embeddings of ``book.strings``, (P, d).
        """
        self._settings, self._temperature = settings, temperature
        parts = book.rows(settings.granularity)
        width = max(len(row) for row in parts)
        self._parts = torch.tensor([row + [-1] * (width - len(row)) for row in parts])
        self._spoken = functional.normalize(string_features, dim=-1)
        self._captions = self._spoken[[numbers[-1] for numbers in book.rows(["caption"])]]
        shuffled = settings.target == "shuffled-text"
        shown = torch.tensor(rows)
        self._rows = shown[torch.from_numpy(partners(seed, len(rows)))] if shuffled else shown

    @torch.no_grad()
    def of(self, samples: Sequence[int], patches: Tensor) -> Target:
        """The targets of ``samples``; ``patches`` is their V, raw, (B, T_v, d)."""
        seen = functional.normalize(patches.float(), dim=-1)
        if self._settings.target == "vision":
            nothing = torch.zeros(len(samples))
            whole = functional.normalize(seen.mean(dim=1), dim=-1)
            return Target(seen, whole, nothing, _variance(seen), nothing)
        rows = self._rows[list(samples)]
        parts = self._parts[rows]
        spoken = self._spoken[parts.clamp(min=0)]
        assignment = assign(seen, spoken, self._temperature, parts >= 0)
        local = assignment @ spoken
        entropy = torch.special.entr(assignment).sum(-1).mean(-1)
        return Target(local, self._captions[rows], entropy, _variance(local), assignment[..., 0].mean(-1))


def _variance(local: Tensor) -> Tensor:
    return local.var(dim=1, correction=0).sum(dim=-1)


def partners(seed: int, count: int) -> NDArray[np.int64]:
    """For each sample another one, (count,): nobody's partner is itself, everybody is somebody's, where count > 1."""
    ring = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _PARTNERS)))).permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[ring] = np.roll(ring, 1)
    return partner
