"""The frozen models at work: pictures and captions to features, the same while encoding and while training.

However many are asked for, a model sees no more of them at once than `BATCH` and `BATCH_PIXELS` say, or fewer texts
where the family says so. Values are rounded here to the number format that they are kept in, so that it makes no
difference whether a feature was read from disk or computed in the training step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from training.errors import TrainingError
from training.families import family_of
from training.settings import TrainingSettings
from training.teach.structure import StructureModel
from training.teach.teacher import Teacher, device, pixel_tensor

BATCH = 64
BATCH_PIXELS = 16 * 1024 * 1024
"""Most pictures or texts, and most pixels, that one model sees at once."""

Tensors = dict[str, Tensor]


class Encoders:
    """VAE, text encoders, teacher and vision model, each loaded when it is first needed. What they give is on the
    CPU, by name, each (B, ...)."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self.family = family_of(settings.base_model)
        self.whole_batches = False
        """Fill up each batch, so that models always see equal shapes and what they make of a picture or text does not
        depend, in its last bits, on what it is encoded with."""

    @cached_property
    def pipeline(self) -> Any:
        """The base model's pipeline with its VAE and text encoders, and an MM-DiT without weights."""
        pipeline = self.family.load_pipeline(transformer=self.family.empty_transformer())
        for part in self.family.parts:
            model = getattr(pipeline, part)
            if isinstance(model, torch.nn.Module):
                model.eval().requires_grad_(False).to(device())
        return pipeline

    @cached_property
    def teacher_model(self) -> Teacher:
        """The dual encoder."""
        if self._settings.teacher is None:
            raise TrainingError("training.teacher is missing; name its folder or disable supervision")
        return Teacher(self._settings.teacher)

    @cached_property
    def structure_model(self) -> StructureModel:
        """The vision model that L_structure looks through."""
        supervision = self._settings.supervision
        source: Path | Teacher = self._settings.structure_model or self.teacher_model
        return StructureModel(source, supervision.structure_depths, supervision.structure_grid)

    @torch.no_grad()
    def encode(self, part: str, what: Sequence[Any]) -> Tensors:
        """A part of pictures, captions or strings, in the number format that is kept:

        - ``latents`` of equal-sized pictures: ``mean`` and ``std`` of the posterior, as the MM-DiT sees latents,
          (B, C, h, w);
        - ``text`` of captions: ``embeddings`` (B, L, D), ``pooled`` (B, P), ``mask`` (B, L), as far as the family has
          them, and ``truncated`` (B,), whether a caption was longer than is read;
        - ``teacher`` of pictures: ``patches`` V, (B, T_v, d) fp16;
        - ``structure`` of pictures: ``similarities``, G(F_m) above the diagonal, (B, layers, pairs) fp16;
        - ``strings``: ``features``, the teacher's embedding of each string as it stands, (B, d) fp32.

        Raises:
            TrainingError: a value is not finite in the format that is kept.
        """
        most, batches = self._at_once(part, what), []
        for start in range(0, len(what), most):
            some = list(what[start : start + most])
            filled = some + [some[-1]] * (most - len(some) if self.whole_batches else 0)
            made = getattr(self, f"_{part}")(filled)
            batches.append({name: tensor[: len(some)].cpu() for name, tensor in made.items()})
        return self._rounded(part, joined(batches))

    def _at_once(self, part: str, what: Sequence[Any]) -> int:
        if part in ("text", "strings"):
            return min(BATCH, self.family.texts_at_once) if part == "text" else BATCH
        return min(pictures_at_once(image.size) for image in what)

    def _latents(self, images: Sequence[Image.Image]) -> Tensors:
        vae = self.pipeline.vae
        pixels = pixel_tensor(images, [0.5] * 3, [0.5] * 3).to(vae.device, vae.dtype)
        return dict(zip(("mean", "std"), self.family.posterior(vae, pixels), strict=True))

    def _text(self, captions: list[str]) -> Tensors:
        longest = self._settings.max_sequence_length or self.family.longest_text
        return self.family.encode_captions(self.pipeline, captions, longest, device())

    def _teacher(self, images: Sequence[Image.Image]) -> Tensors:
        return {"patches": self.teacher_model.patch_features(self.teacher_model.prepare(images))}

    def _structure(self, images: Sequence[Image.Image]) -> Tensors:
        return {"similarities": self.structure_model.structure(images)}

    def _strings(self, strings: Sequence[str]) -> Tensors:
        return {"features": self.teacher_model.text_features(strings)}

    def _rounded(self, part: str, tensors: Tensors) -> Tensors:
        half = part in ("teacher", "structure") or (part != "strings" and self._settings.cache_precision == "fp16")
        kept = torch.float16 if half else torch.float32
        made = {name: t.to(kept) if t.is_floating_point() else t for name, t in tensors.items()}
        for name, tensor in made.items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(
                    f"{part} ({name}) cannot be kept in {str(kept).removeprefix('torch.')}: values reach "
                    f"{float(tensors[name].abs().max()):g}; set training.cache_precision to fp32, or leave the part "
                    "out of training.cached where it is that already"
                )
        return made


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture upright, in RGB, the largest centre of its shape that ``size`` (width, height in pixels) has."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.size == size:
        return upright
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def pictures_at_once(size: tuple[int, int]) -> int:
    """How many pictures of ``size`` (width, height) go through a model together."""
    return max(1, min(BATCH, BATCH_PIXELS // (size[0] * size[1])))


def joined(batches: Sequence[Tensors]) -> Tensors:
    """One batch of all, by name, each (B, ...); texts shorter than the longest get zeros at their end."""
    made = {}
    for name, first in batches[0].items():
        tensors = [batch[name] for batch in batches]
        if name in ("embeddings", "mask"):
            length = max(tensor.shape[1] for tensor in tensors)
            beside = (0, 0) * (first.ndim - 2)
            tensors = [functional.pad(t, (*beside, 0, length - t.shape[1])) for t in tensors]
        made[name] = torch.cat(tensors)
    return made


def rows_of(tensors: Tensors) -> Iterator[Tensors]:
    """The rows of a batch, by name, texts without their padding."""
    for row in zip(*tensors.values(), strict=True):
        made = dict(zip(tensors, row, strict=True))
        if "mask" in made:
            length = int(made["mask"].sum())
            made |= {name: made[name][:length] for name in ("embeddings", "mask")}
        yield made
