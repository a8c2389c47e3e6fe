"""The evaluation set: pinned prompts with their seeds and attributes, how to sample them, and pictures to compare with.

A folder: ``set.json`` (name, version, sampling), ``prompts.jsonl`` (``id, text, seeds, attributes``), ``references/``
(real pictures that the samples of set-level scorers are compared with), ``heldout/`` (real pictures that no model was
trained on, with captions and, if they like, attributes in ``metadata.jsonl``: what memorisation is measured against).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from pydantic import Field, ValidationError

from lineage.digests import LineageError, digest_bytes, digest_path
from lineage.frozen import Frozen
from lineage.pictures import FORMATS

TRIES = 30
"""Of drawing prompts; the one that is most even over their attributes counts."""


class EvaluationError(LineageError):
    """An evaluation set, a model or a scorer cannot be used; the message says which and what to do."""


class Prompt(Frozen):
    """One prompt; every seed gives one picture."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    text: str = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    attributes: dict[str, str | bool]
    sealed: bool = False
    """Looked at only to confirm what the other prompts would promote."""


class Sampling(Frozen):
    """How pictures are drawn; ``height`` and ``width`` in pixels."""

    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    max_sequence_length: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


class SetDescription(Sampling):
    """``set.json``: which set this is, and how to sample it."""

    name: str
    version: int

    @property
    def sampling(self) -> Sampling:
        """How to sample it."""
        return Sampling.model_validate(self.model_dump(exclude={"name", "version"}))


@dataclass(frozen=True)
class EvaluationSet:
    """A loaded evaluation set."""

    root: Path
    description: SetDescription
    prompts: tuple[Prompt, ...]
    digest: str
    """Of the whole folder, and of the choice of prompts where a limit makes one."""

    @property
    def samples(self) -> list[tuple[Prompt, int]]:
        """Every (prompt, seed), in order."""
        return [(prompt, seed) for prompt in self.prompts for seed in prompt.seeds]

    def references(self) -> list[Image.Image]:
        """Everything in ``references``, in the order of the names; none where the set has none.

        Raises:
            EvaluationError: something there is no picture.
        """
        return [open_rgb(path) for path in sorted((self.root / "references").glob("*"))]

    def heldout(self) -> list[tuple[Path, Prompt]]:
        """Every held-out picture with what it shows, as if it had been asked for; none where the set has none.

        Raises:
            EvaluationError: ``metadata.jsonl`` is malformed.
        """
        listed = self.root / "heldout" / "metadata.jsonl"
        if not listed.is_file():
            return []
        try:
            rows = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
            said = [{"text": row["text"], "attributes": row.get("attributes", {})} for row in rows]
            prompts = [Prompt(id=str(place), seeds=(0,), **told) for place, told in enumerate(said)]
            return [(listed.parent / row["file_name"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{listed} is malformed: {error!r}; each line needs file_name and text") from error


def open_rgb(source: Path | BinaryIO) -> Image.Image:
    """A picture as RGB, in one of `lineage.pictures.FORMATS`.

    Raises:
        EvaluationError: it is missing, broken or of another format.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            return image.convert("RGB")
    except OSError as error:
        raise EvaluationError(f"the picture {source} cannot be read: {error}") from error


def read_evaluation_set(
    folder: str, limit: int | None = None, rotate: int | None = None, decision: int = 1
) -> EvaluationSet:
    """Read an evaluation set, or ``limit`` of its prompts spread evenly over it.

    Args:
        rotate: so many prompts and new seeds, drawn by ``decision``, which one on this set this is.

    Raises:
        EvaluationError: a file is missing or malformed; the message names it and the line.
    """
    root = Path(folder)
    try:
        description = SetDescription.model_validate_json((root / "set.json").read_bytes())
        lines = (root / "prompts.jsonl").read_text().splitlines()
    except OSError as error:
        raise EvaluationError(f"the evaluation set at {folder} cannot be read: {error}") from error
    except ValidationError as error:
        raise EvaluationError(f"{root / 'set.json'} is malformed: {error}") from error
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append(Prompt.model_validate(json.loads(line)))
        except ValueError as error:
            raise EvaluationError(f"{root / 'prompts.jsonl'} is malformed in line {number}: {error}") from error
    if len({prompt.id for prompt in prompts}) != len(prompts) or not prompts:
        raise EvaluationError(f"{root / 'prompts.jsonl'} is empty or names a prompt twice")
    digest = digest_path(root)
    if limit is not None and limit < len(prompts):
        prompts = [prompts[i * len(prompts) // limit] for i in range(limit)]
        digest = f"{digest}:{limit}"
    if rotate is not None and rotate < len(prompts):
        prompts = _rotated(prompts, rotate, decision)
        digest = f"{digest}:{rotate}:{decision}"
    return EvaluationSet(root, description, tuple(prompts), digest)


def _rotated(prompts: Sequence[Prompt], count: int, decision: int) -> list[Prompt]:
    """``count`` of the open prompts, evenly over their attributes, with seeds of this decision; and all sealed ones."""

    def drawn(prompt: Prompt, number: int) -> int:
        return int(digest_bytes(f"{decision}:{prompt.id}:{number}".encode())[-7:], 16)

    def uneven(chosen: Sequence[Prompt]) -> float:
        found = Counter(pair for prompt in chosen for pair in prompt.attributes.items())
        return sum(
            (found[pair] / count - total / len(asked)) ** 2 * len(asked) / total for pair, total in every.items()
        )

    asked = [prompt for prompt in prompts if not prompt.sealed]
    every = Counter(pair for prompt in asked for pair in prompt.attributes.items())
    tries = (sorted(asked, key=lambda prompt: drawn(prompt, -number))[:count] for number in range(1, TRIES + 1))
    chosen = min(tries, key=uneven)
    fresh = {
        prompt.id: prompt.model_copy(update={"seeds": tuple(drawn(prompt, n) for n in range(len(prompt.seeds)))})
        for prompt in chosen
    }
    return [fresh.get(prompt.id, prompt) for prompt in prompts if prompt.sealed or prompt.id in fresh]
