"""The evaluation set: pinned prompts with their seeds and attributes, and how to sample them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lineage.digests import LineageError, digest_path


class EvaluationError(LineageError):
    """An evaluation set, a model or a scorer cannot be used; the message says which and what to do."""


class Prompt(BaseModel):
    """One prompt; every seed gives one picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    text: str = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    attributes: dict[str, str | bool]


class Sampling(BaseModel):
    """How pictures are drawn; ``height`` and ``width`` in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    description: SetDescription
    prompts: tuple[Prompt, ...]
    digest: str
    """Of the whole folder, and of the choice of prompts where a limit makes one."""

    @property
    def samples(self) -> list[tuple[Prompt, int]]:
        """Every (prompt, seed), in order."""
        return [(prompt, seed) for prompt in self.prompts for seed in prompt.seeds]


def read_evaluation_set(folder: str, limit: int | None = None) -> EvaluationSet:
    """Read an evaluation set, or ``limit`` of its prompts spread evenly over it.

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
    return EvaluationSet(description, tuple(prompts), digest)
