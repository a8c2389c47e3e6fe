"""``features.json``: what a features folder was made from. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lineage.digests import digest_path
from training.errors import TrainingError
from training.families import family_of
from training.settings import Part, TrainingSettings

INFO = "features.json"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Facts):
    """One safetensors file of a part."""

    name: str
    rows: int
    digest: str
    """Of its bytes, checked when it is first read."""


class Structure(_Facts):
    """What self-similarities were encoded."""

    model: str
    """Digest of the vision model's folder; the teacher's where its own vision tower was used."""
    depths: tuple[float, ...]
    grid: int
    """Rows and columns asked for."""


class FeaturesInfo(_Facts):
    """``features.json``."""

    format: Literal[3] = 3
    manifest: str
    """Digest of the manifest whose pictures and captions these are."""
    base_model: str
    """Digest of the base model's folder."""
    encoders: str
    """Digest of the parts of the base model that were used: VAE, text encoders, tokenizers."""
    teacher: str | None
    """Digest of the teacher's folder; None: no teacher was used."""
    temperature: float | None
    """τ of the teacher."""
    structure: Structure | None
    """None: no vision model was used."""
    precision: Literal["fp32", "fp16"]
    """Of latents and text embeddings."""
    images: int
    captions: int
    """Distinct captions, the empty one included."""
    phrases: int
    """Distinct strings that the teacher read: captions, clauses, phrases."""
    longest: int | None
    """Most tokens that are read of a caption; None where text is not cached."""
    truncated_captions: int | None
    """Captions longer than the text encoders read; None where text is not cached."""
    sizes: list[tuple[int, int, int]]
    """Runs of samples of one size: (samples, width, height in pixels), in the order of the samples."""
    corpus: str
    """Digest of ``corpus.json``."""
    cached: tuple[Part, ...]
    """The parts that are read from here; others are computed while training."""
    parts: dict[str, list[Shard]]
    """The shards of each part that is cached, and of the teacher's ``strings`` and the sums of its patches."""
    alignment: dict[str, float]
    """How decided the vision-aligned target is: means over the first pictures of the entropy of A in nats, the
    variance of C across patches, and A's mass on the null row."""


def read_info(folder: Path) -> FeaturesInfo:
    """Read ``features.json``.

    Raises:
        TrainingError: it is missing or not of this format.
    """
    try:
        return FeaturesInfo.model_validate_json((folder / INFO).read_text("utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"no features at {folder}: {INFO} is missing; run the encode-features step") from None
    except ValidationError as error:
        raise TrainingError(f"{folder / INFO} is not of the format read here: {error}; encode again") from error


def write_info(folder: Path, info: FeaturesInfo) -> None:
    """Write ``features.json``: last, so that a folder without it is known to be unfinished."""
    text = json.dumps(info.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / INFO).write_text(text + "\n", "utf-8")


def structure_of(settings: TrainingSettings) -> Structure | None:
    """What self-similarities ``settings`` ask for."""
    supervision = settings.supervision
    source = settings.structure_model or settings.teacher
    if not supervision.structured or source is None:
        return None
    return Structure(model=digest_path(source), depths=supervision.structure_depths, grid=supervision.structure_grid)


def check_features(settings: TrainingSettings, folder: Path, manifest: str | None = None) -> FeaturesInfo:
    """Refuse features that are not of this snapshot, these encoders or these settings.

    ``manifest``: digest of the manifest that was validated; None: whatever snapshot was encoded will do.

    Raises:
        TrainingError: what they were made with, and what is asked for.
    """
    info = read_info(folder)
    _same(folder, "of another snapshot", info.manifest, manifest or info.manifest)
    family = family_of(settings.base_model)
    _same(folder, f"made with other encoders than those of {settings.base_model}", info.encoders,
          family.encoders_digest())  # fmt: skip
    if info.longest is not None:
        _same(folder, "of captions read to another training.max_sequence_length", info.longest,
              longest_text(settings))  # fmt: skip
    _check_sizes(folder, info, settings.buckets or ((family.resolution, family.resolution),))
    if settings.supervision.enabled:
        if settings.teacher is None or info.teacher is None:
            raise TrainingError(f"the features at {folder} were made without a teacher; encode them again with one")
        _same(folder, f"made with another teacher than {settings.teacher}", info.teacher, digest_path(settings.teacher))
    asked = structure_of(settings)
    if asked is not None:
        _same(folder, "made with another vision model, or other depths or another grid of its patches (L_structure)",
              info.structure, asked)  # fmt: skip
    # What is cached though it need not be is read all the same.
    lacking = [part for part in needed_parts(settings) if part in settings.cached and part not in info.cached]
    if lacking:
        raise TrainingError(
            f"the features at {folder} lack {', '.join(lacking)}, which training.cached names; encode them again, or "
            "take the names out so that they are computed while training"
        )
    if info.precision != settings.cache_precision:
        raise TrainingError(
            f"the features at {folder} are in {info.precision}, but training.cache_precision is "
            f"{settings.cache_precision}; encode them again or change the setting"
        )
    return info


def longest_text(settings: TrainingSettings) -> int:
    """Most tokens that are read of a caption."""
    return settings.max_sequence_length or family_of(settings.base_model).longest_text


def needed_parts(settings: TrainingSettings) -> tuple[Part, ...]:
    """The parts that training with these settings reads."""
    needed: tuple[Part, ...] = ("latents", "text")
    if settings.supervision.enabled:
        needed += ("teacher",)
    if settings.supervision.structured:
        needed += ("structure",)
    return needed


def _check_sizes(folder: Path, info: FeaturesInfo, asked: Sequence[tuple[int, int]]) -> None:
    other = [f"{width} x {height}" for _, width, height in info.sizes if (width, height) not in asked]
    if other:
        sizes = ", ".join(f"{width} x {height}" for width, height in asked)
        raise TrainingError(
            f"the features at {folder} are of pictures of {', '.join(other)} pixels, but training.buckets (without "
            f"any, the base model's own square) asks for {sizes}; encode them again or change the setting"
        )


def _same(folder: Path, reproach: str, found: Any, asked: Any) -> None:
    if found != asked:
        raise TrainingError(
            f"the features at {folder} are {reproach}: they name {found}, asked for is {asked}; encode them again"
        )
