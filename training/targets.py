"""The vision-aligned text target: which phrase of the caption each patch shows, in the teacher's eyes.

    A = softmax(V̂ · Ŝᵀ / τ)        C = A · Ŝ

V̂ are a picture's patches (`Teacher.patch_features`), Ŝ the phrases of its caption and a null row (the empty
string: nothing that was said), both less their mean over the corpus and then of length one; τ is the teacher's
temperature. No parameters, no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.phrases import split_caption

NULL_PHRASE = ""


def centred(features: Tensor, mean: Tensor) -> Tensor:
    """``features`` (..., d) less ``mean`` (d,), scaled to length one."""
    return functional.normalize(features - mean, dim=-1)


@dataclass(frozen=True)
class Phrasebook:
    """Every phrase of the corpus once."""

    phrases: list[str]
    """Row i of the embeddings is of phrase i; row 0 is the null phrase."""
    rows: list[list[int]]
    """For each caption the rows of its phrases, the null row last."""

    @classmethod
    def of(cls, captions: Sequence[str]) -> Phrasebook:
        """The phrases of ``captions``, in order of appearance."""
        numbers: dict[str, int] = {NULL_PHRASE: 0}
        rows = [
            [*(numbers.setdefault(phrase, len(numbers)) for phrase in split_caption(caption)), 0]
            for caption in captions
        ]
        return cls(list(numbers), rows)


def align(patches: Tensor, phrases: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The target C and the assignment A of one picture.

    ``patches``: V̂, (T_v, d). ``phrases``: Ŝ, (S, d). Gives (T_v, d) and (T_v, S).
    """
    assignment = torch.softmax(patches @ phrases.T / temperature, dim=-1)
    return assignment @ phrases, assignment


@dataclass
class AlignmentReport:
    """How decided the assignments are, over the corpus; sums, so that it can be added to picture by picture."""

    pictures: int = 0
    entropy: float = 0.0
    variance: float = 0.0
    null_share: float = 0.0

    def add(self, target: Tensor, assignment: Tensor) -> None:
        """Take in one picture's C and A."""
        self.pictures += 1
        self.entropy += float(torch.special.entr(assignment).sum(-1).mean())
        self.variance += float(target.var(dim=0, correction=0).sum())
        self.null_share += float(assignment[:, -1].mean())

    def summary(self) -> dict[str, float]:
        """Means over pictures: entropy of A in nats, variance of C across patches, A's mass on the null row."""
        count = max(self.pictures, 1)
        return {
            "assignment_entropy_nats": self.entropy / count,
            "target_variance": self.variance / count,
            "null_share": self.null_share / count,
        }
