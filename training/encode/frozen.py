"""The frozen models at work: pictures and captions to features, the same while encoding and while training.

However many are asked for, a model sees no more of them at once than `BATCH` and `BATCH_PIXELS` say.

Values are rounded here to the number format that shards are kept in, so that it makes no difference whether a
feature was read from disk or computed in the training step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.errors import TrainingError
from training.families import family_of
from training.families.family import CONDITIONING, CaptionBatch, Encoders, join_captions
from training.settings import TrainingSettings
from training.teach.structure import StructureModel
from training.teach.teacher import Teacher, pixel_tensor

BATCH = 64
BATCH_PIXELS = 16 * 1024 * 1024
"""Most pictures or texts, and most pixels, that one model sees at once."""

Tensors = dict[str, Tensor]


class Frozen:
    """VAE, text encoders, teacher and vision model, each loaded when it is first needed."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._kept = torch.float16 if settings.cache_precision == "fp16" else torch.float32

    @cached_property
    def encoders(self) -> Encoders:
        """The base model's VAE and text encoders."""
        return family_of(self._settings.base_model).load_encoders()

    @cached_property
    def teacher(self) -> Teacher:
        """The dual encoder."""
        if self._settings.teacher is None:
            raise TrainingError("training.teacher is missing; name its folder or disable supervision")
        return Teacher(self._settings.teacher)

    @cached_property
    def structure_model(self) -> StructureModel:
        """The vision model that L_structure looks through."""
        supervision = self._settings.supervision
        source: Path | Teacher = self._settings.structure_model or self.teacher
        return StructureModel(source, supervision.structure_depths, supervision.structure_grid)

    def latents(self, images: Sequence[Image.Image]) -> Tensors:
        """``mean`` and ``std`` of the posterior of equal-sized pictures: (B, C, h, w) each."""
        half = [0.5] * 3
        seen = [self.encoders.encode_images(pixel_tensor(some, half, half)) for some in _pictures(images)]
        mean, std = (torch.cat(tensors).to(self._kept) for tensors in zip(*seen, strict=True))
        return {"mean": mean, "std": std}

    def text(self, captions: Sequence[str]) -> Tensors:
        """Conditioning, by names of `CONDITIONING`, (B, ...) each, and ``truncated`` (1,), how many were cut."""
        longest = self._settings.max_sequence_length
        batch = join_captions([self.encoders.encode_captions(some, longest) for some in _texts(captions)])
        kept = {n: t.to(self._kept) if t.is_floating_point() else t for n, t in batch.conditioning.items()}
        return kept | {"truncated": torch.tensor([batch.truncated])}

    def teacher_patches(self, images: Sequence[Image.Image]) -> Tensors:
        """``patches`` V, (B, T_v, d) fp16, and their ``sum`` over pictures and patches, (1, d) fp64."""
        teacher = self.teacher
        seen = torch.cat([teacher.patch_features(teacher.prepare(some)).half() for some in _pictures(images)])
        return {"patches": seen, "sum": seen.double().sum(dim=(0, 1))[None]}

    def structure(self, images: Sequence[Image.Image]) -> Tensors:
        """``similarities``, G(F_m) above the diagonal: (B, layers, pairs) fp16."""
        seen = [self.structure_model.structure(some).half() for some in _pictures(images)]
        return {"similarities": torch.cat(seen)}

    def strings(self, strings: Sequence[str]) -> Tensors:
        """``features``, the teacher's embedding of each string as it stands: (B, d) fp32."""
        return {"features": torch.cat([self.teacher.text_features(some) for some in _texts(strings)])}


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture upright, in RGB, the largest centre of its shape that ``size`` (width, height in pixels) has."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.size == size:
        return upright
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def pictures_at_once(size: tuple[int, int]) -> int:
    """How many pictures of ``size`` (width, height) go through a model together."""
    return max(1, min(BATCH, BATCH_PIXELS // (size[0] * size[1])))


def _pictures(images: Sequence[Image.Image]) -> Iterator[Sequence[Image.Image]]:
    """``images`` in runs of as many as go through a model together."""
    most = min(pictures_at_once(image.size) for image in images)
    return (images[start : start + most] for start in range(0, len(images), most))


def _texts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """``texts`` in runs of as many as go through a model together."""
    return (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))


def join_conditioning(batches: Sequence[Tensors]) -> Tensors:
    """One batch of the conditioning in all; texts shorter than the longest get zeros at their end."""
    return join_captions(
        [CaptionBatch({name: t for name, t in batch.items() if name in CONDITIONING}, 0) for batch in batches]
    ).conditioning
