"""``features.json``: what a features folder was made of, and what it may be used for. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from lineage.digests import code_digest, digest_file, digest_json, digest_path, hex_of
from lineage.frozen import Frozen
from lineage.policy import differences
from training.encode.store import check_segment, digest_rows, find_rows
from training.errors import TrainingError
from training.families import family_of
from training.settings import Part, TrainingSettings

INFO, CORPUS = "features.json", "corpus.json"
Kept = Part | Literal["strings"]
"""What has rows: the parts, and the teacher's embeddings of strings."""

_PICTURES, _MODELS = ("pillow", "numpy"), ("torch", "transformers", "tokenizers", "safetensors")
_DECIDED_BY: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "latents": ((), ("torch", "diffusers", *_PICTURES)),
    "text": ((), ("diffusers", *_MODELS)),
    "teacher": (("training.teach.teacher",), (*_MODELS, *_PICTURES)),
    "strings": (("training.teach.teacher",), _MODELS),
    "structure": (("training.teach.structure", "training.teach.teacher"), (*_MODELS, *_PICTURES)),
}
"""Modules and packages whose code decides the rows of a part, beside the encoders' own and, for latents and text, the
family's."""


class FeaturesInfo(Frozen):
    """``features.json``."""

    format: Literal[5] = 5
    made_of: dict[str, Any]
    """`made_of` the settings: what decides the features."""
    images: int
    captions: int
    """Distinct captions, the one that stands for a dropped caption included."""
    phrases: int
    """Distinct strings that the teacher read: captions, clauses, phrases."""
    truncated_captions: int | None
    """Captions longer than the text encoders read; None where text is not cached."""
    sizes: list[tuple[int, int, int]]
    """Runs of samples of one size: (samples, width, height in pixels), in the order of the samples."""
    corpus: str
    """Digest of ``corpus.json``."""
    cached: tuple[Part, ...]
    """The parts that are read from here; others are computed while training."""
    temperature: float | None
    """τ of the teacher; None: no teacher was used."""
    rows: dict[str, str]
    """For each part that has rows the digest of them all, in the order of ``corpus.json``."""
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


def made_of(settings: TrainingSettings, corpus: str | None) -> dict[str, Any]:
    """What decides the features that ``settings`` ask for, by name.

    Args:
        corpus: `training.encode.pictures.corpus_digest` of pictures and captions.
    """
    needed, family = needed_parts(settings), family_of(settings.base_model)
    made: dict[str, Any] = {"snapshot": corpus, "encoders": family.encoders_digest()}
    made["cache_precision"] = settings.cache_precision
    if "text" in settings.cached:
        made["max_sequence_length"] = settings.max_sequence_length or family.longest_text
    if "teacher" in needed and settings.teacher:
        made["teacher"] = digest_path(settings.teacher)
    source = settings.structure_model or settings.teacher
    if "structure" in needed and source:
        supervision = settings.supervision
        made["structure"] = {"model": digest_path(source), "depths": list(supervision.structure_depths),
                             "grid": supervision.structure_grid}  # fmt: skip
    if settings.replay.captions:
        made["replay"] = digest_path(settings.replay.captions)
    return made


def needed_parts(settings: TrainingSettings) -> tuple[Part, ...]:
    """The parts that training with these settings reads."""
    supervision = settings.supervision
    use = {"latents": True, "text": True, "teacher": supervision.enabled, "structure": supervision.structured}
    return tuple(part for part in get_args(Part) if use[part])


def part_folder(part: str, made: Mapping[str, Any], settings: TrainingSettings) -> str:
    """Name of the folder that keeps a part's rows from run to run: the part, and the digest of all that decides them
    but picture or text."""
    recipe: dict[str, Any] = {"model": made.get({"strings": "teacher"}.get(part, part), made["encoders"])}
    modules, packages = _DECIDED_BY[part]
    if part in ("latents", "text"):
        family = type(family_of(settings.base_model)).__module__
        modules = (*modules, "training.families.family", family)
        recipe["precision"] = made["cache_precision"]
    if part == "text":
        recipe["longest"] = made["max_sequence_length"]
    recipe["code"] = code_digest("training.encode.encoders", *modules)
    recipe["packages"] = {name: version(name) for name in packages}
    return f"{part}-{hex_of(digest_json(recipe))[:16]}"


def check_features(settings: TrainingSettings, folder: Path, corpus: str | None = None) -> FeaturesInfo:
    """Refuse features that are not of this snapshot, these encoders or these settings.

    ``corpus``: `corpus_digest` of what was validated; None: whatever was encoded will do.

    Raises:
        TrainingError: what they were made of, and what is asked for.
    """
    info = read_info(folder)
    asked = made_of(settings, corpus or info.made_of["snapshot"])
    if "text" not in info.cached:
        asked.pop("max_sequence_length", None)
    # What was made for more than is asked for will do.
    other = list(differences({name: info.made_of.get(name) for name in asked}, asked))
    if other:
        raise TrainingError(
            f"the features at {folder} are of other things than asked for: {'; '.join(other)}; encode them again"
        )
    side = family_of(settings.base_model).resolution
    _check_sizes(folder, info, settings.buckets or ((side, side),))
    lacking = [part for part in needed_parts(settings) if part in settings.cached and part not in info.cached]
    if lacking:
        raise TrainingError(
            f"the features at {folder} lack {', '.join(lacking)}, which training.cached names; encode them again, or "
            "take the names out so that they are computed while training"
        )
    return info


def _check_sizes(folder: Path, info: FeaturesInfo, asked: Sequence[tuple[int, int]]) -> None:
    other = [f"{width} x {height}" for _, width, height in info.sizes if (width, height) not in asked]
    if other:
        sizes = ", ".join(f"{width} x {height}" for width, height in asked)
        raise TrainingError(
            f"the features at {folder} are of pictures of {', '.join(other)} pixels, but training.buckets (without "
            f"any, the base model's own square) asks for {sizes}; encode them again or change the setting"
        )


def features_digest(folder: Path) -> str:
    """The digest of a features folder, of its content and not of how that lies in files: of ``features.json``.

    Everything that this names is hashed, once a process for files that stay as they are: whoever starts training
    calls this, and the training processes read without hashing.

    Raises:
        TrainingError: something is not what was encoded.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    stamps = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _verified(folder, tuple(stamps))


@lru_cache(maxsize=8)
def _verified(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    info, corpus = read_info(folder), folder / CORPUS
    if not corpus.is_file() or digest_file(corpus) != info.corpus:
        raise TrainingError(f"{corpus} is not what was encoded; encode the features again")
    listed = json.loads(corpus.read_text("utf-8"))
    for part, digest in info.rows.items():
        for path in sorted((folder / part).glob("*.safetensors")):
            check_segment(path)
        if digest_of(folder / part, keys_of(listed, part)) != digest:
            raise TrainingError(f"the rows at {folder / part} are not what was encoded; encode the features again")
    return digest_file(folder / INFO)


def digest_of(place: Path, keys: Iterable[str]) -> str:
    """The digest of the rows that ``keys`` name.

    Raises:
        TrainingError: one is missing.
    """
    rows = find_rows(place)
    try:
        return digest_rows(rows[key] for key in keys)
    except KeyError as error:
        raise TrainingError(f"{place} lacks the row {error}; encode the features again") from error


def keys_of(corpus: Mapping[str, Any], part: str) -> list[str]:
    """Keys of the rows of a part, in the order of ``corpus.json``'s pictures, captions or strings."""
    if part in ("text", "strings"):
        texts: list[str] = corpus["captions" if part == "text" else "strings"]
        return [text_key(text) for text in texts]
    keys: list[str] = corpus["keys"]
    return keys


def text_key(text: str) -> str:
    """Key of a caption's or string's row."""
    return hashlib.sha256(text.encode()).hexdigest()
