"""Encoding: from pictures and captions to the features folder, each picture read once.

The corpus means that the supervision target needs are known only after the last picture: patch features wait
in a temporary file beside each shard and become targets in a second pass over those files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from lineage.digests import digest_path
from training import features as folder_format
from training.errors import TrainingError
from training.families import family_of
from training.families.family import Encoders, join_captions
from training.features_info import FeaturesInfo, write_info
from training.settings import TrainingSettings
from training.targets import AlignmentReport, Phrasebook, align, centred
from training.teacher import Teacher, pixel_tensor

SHARD_ROWS = 1024
BATCH = 64


@dataclass(frozen=True)
class Corpus:
    """Pictures with captions."""

    manifest: str
    """Digest of the manifest that lists them."""
    captions: Sequence[str]
    """One caption a picture."""
    load: Callable[[range], list[Image.Image]]
    """Gives the pictures of a run of rows."""

    def __len__(self) -> int:
        return len(self.captions)


def encode(settings: TrainingSettings, corpus: Corpus, folder: Path) -> FeaturesInfo:
    """Encode ``corpus`` into a features folder.

    Raises:
        TrainingError: the corpus is empty, or a model cannot be used.
    """
    if not len(corpus):
        raise TrainingError("there are no pictures to encode: the validated manifest is empty")
    torch.set_num_threads(settings.processes * settings.threads_per_process)
    folder.mkdir(parents=True, exist_ok=True)
    family = family_of(settings.base_model)
    encoders, side = family.load_encoders(), family.resolution
    teacher_path = settings.teacher if settings.supervision.enabled else None
    teacher = Teacher(teacher_path) if teacher_path else None
    distinct = list(dict.fromkeys(["", *corpus.captions]))
    tensors, truncated = _encode_captions(encoders, distinct)
    numbers = {caption: number for number, caption in enumerate(distinct)}
    rows = torch.tensor([numbers[caption] for caption in corpus.captions])
    alignment, phrases = AlignmentReport(), 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        mean = _encode_images(encoders, teacher, corpus, side, rows, folder, Path(scratch))
        if teacher:
            tensors["teacher"] = _caption_targets(teacher, distinct)
            book = Phrasebook.of(distinct)
            phrases = len(book.phrases)
            alignment = _write_targets(teacher, book, mean, rows, folder, Path(scratch))
    folder_format.write_tensors(folder / folder_format.CAPTIONS, tensors)
    info = FeaturesInfo(
        manifest=corpus.manifest,
        base_model=digest_path(settings.base_model),
        encoders=family.encoders_digest(),
        teacher=digest_path(teacher_path) if teacher_path else None,
        images=len(corpus),
        captions=len(distinct),
        phrases=phrases,
        truncated_captions=truncated,
        resolution=side,
        shard_rows=SHARD_ROWS,
        teacher_grid=teacher.grid if teacher else None,
        alignment=alignment.summary(),
    )
    write_info(folder, info)
    return info


def square(image: Image.Image, side: int) -> Image.Image:
    """The picture upright, in RGB, its centre square, ``side`` pixels high and wide."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.size == (side, side):
        return upright
    return ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS)


def _runs(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _encode_captions(encoders: Encoders, captions: list[str]) -> tuple[dict[str, Tensor], int]:
    """Conditioning of each caption, and how many were cut."""
    whole = join_captions(
        [encoders.encode_captions(captions[run.start : run.stop]) for run in _runs(len(captions), BATCH)]
    )
    return whole.conditioning, whole.truncated


def _texts(teacher: Teacher, texts: list[str]) -> Tensor:
    return torch.cat([teacher.text_features(texts[run.start : run.stop]) for run in _runs(len(texts), BATCH)])


def _caption_targets(teacher: Teacher, captions: list[str]) -> Tensor:
    """z_g: whole captions, less their mean (the empty one, row 0, left out of it), of length one: (U, d)."""
    features = _texts(teacher, captions)
    return centred(features, features[1:].mean(dim=0) if len(captions) > 1 else features[0])


def _encode_images(
    encoders: Encoders,
    teacher: Teacher | None,
    corpus: Corpus,
    side: int,
    rows: Tensor,
    folder: Path,
    scratch: Path,
) -> Tensor:
    """Write latents, and the teacher's patches to ``scratch``; gives the mean patch, (d,)."""
    total = torch.zeros(teacher.width if teacher else 0, dtype=torch.float64)
    patch_count = 0
    for shard, run in enumerate(_runs(len(corpus), SHARD_ROWS)):
        means, stds, patches = [], [], []
        for part in (run[start : start + BATCH] for start in range(0, len(run), BATCH)):
            images = [square(image, side) for image in corpus.load(part)]
            mean, std = encoders.encode_images(pixel_tensor(images, [0.5] * 3, [0.5] * 3))
            means.append(mean)
            stds.append(std)
            if teacher:
                seen = teacher.patch_features(teacher.prepare(images))
                total += seen.double().sum(dim=(0, 1))
                patch_count += seen.shape[0] * seen.shape[1]
                patches.append(seen)
        latents = {"mean": torch.cat(means), "std": torch.cat(stds), "caption": rows[run.start : run.stop]}
        folder_format.write_tensors(folder / folder_format.latents_name(shard), latents)
        if teacher:
            folder_format.write_tensors(scratch / folder_format.targets_name(shard), {"patches": torch.cat(patches)})
    return (total / max(patch_count, 1)).float()


def _write_targets(
    teacher: Teacher, book: Phrasebook, mean: Tensor, rows: Tensor, folder: Path, scratch: Path
) -> AlignmentReport:
    """Turn the waiting patches into targets C."""
    spoken = _texts(teacher, book.phrases)
    phrases = centred(spoken, spoken[1:].mean(dim=0) if len(spoken) > 1 else spoken[0])
    report = AlignmentReport()
    for shard, run in enumerate(_runs(len(rows), SHARD_ROWS)):
        name = folder_format.targets_name(shard)
        patches = centred(load_file(scratch / name)["patches"], mean)
        targets = []
        for picture, caption in zip(patches, rows[run.start : run.stop].tolist(), strict=True):
            target, assignment = align(picture, phrases[book.rows[caption]], teacher.temperature)
            report.add(target, assignment)
            targets.append(target.half())
        folder_format.write_tensors(folder / name, {"target": torch.stack(targets)})
    return report
