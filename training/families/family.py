"""What training asks of a family of MM-DiT models, and what all families answer alike.

A bundle is a folder that plain diffusers loads. Prompts are encoded by the very pipeline that will draw with the
model, so conditioning in training is what it is in sampling. Imports nothing heavy before a model is asked for.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lineage.digests import digest_json, digest_path
from training.draws import shift_factor
from training.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model_index.json"
CONDITIONING = ("embeddings", "mask", "pooled")
"""Names under which families keep what a caption conditions with."""


@dataclass(frozen=True)
class CaptionBatch:
    """Conditioning of N captions."""

    conditioning: dict[str, Tensor]
    """By names of `CONDITIONING`: embeddings (N, L, D), pooled (N, P), mask (N, L), as far as the family has them."""
    truncated: int
    """How many captions were longer than the encoders read."""


class Family(ABC):
    """One bundle, seen as a model of its family."""

    pipeline_class: ClassVar[str]
    """Diffusers' name of the pipeline."""
    transformer_class: ClassVar[str]
    """Diffusers' name of the MM-DiT; its ``transformer_blocks`` give (text stream, image stream)."""
    encoder_parts: ClassVar[tuple[str, ...]]
    """The parts that decide latents and text embeddings."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Those that a bundle may lack."""
    longest_text: ClassVar[int]
    """``max_sequence_length`` of a plain call of the pipeline, in tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = self._json(INDEX)
        self.absent = [name for name, kind in index.items() if kind == [None, None]]
        self.parts = [p for p in self.encoder_parts if p not in self.optional_parts or (path / p).is_dir()]
        missing = [part for part in (*self.parts, "transformer", "scheduler") if not (path / part).is_dir()]
        if missing:
            raise TrainingError(f"{path} lacks {', '.join(missing)}; a {self.pipeline_class} bundle has them all")
        self.config = self._json("transformer/config.json")
        self.vae_config = self._json("vae/config.json")
        self.schedule = self._json("scheduler/scheduler_config.json")

    def _json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def encoders_digest(self) -> str:
        """The digest of the parts that latents and text embeddings depend on."""
        return digest_json({part: digest_path(self.path / part) for part in self.parts})

    # Sizes

    @property
    def vae_factor(self) -> int:
        """Pixels in a latent's height and width."""
        return 1 << (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def patch(self) -> int:
        """Latents in a token's height and width: FLUX and Qwen-Image pack 2 by 2 of them before the MM-DiT."""
        return 2

    @property
    def resolution(self) -> int:
        """Height and width, in pixels, of the pictures that a plain call of the pipeline draws."""
        return 128 * self.vae_factor

    @property
    def timesteps(self) -> int:
        """Training timesteps of the scheduler."""
        return int(self.schedule.get("num_train_timesteps", 1000))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens for latents of ``height`` by ``width``."""
        return height // self.patch, width // self.patch

    def check_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Refuse pictures (width, height) that cannot be cut into latents and tokens.

        Raises:
            TrainingError: a side is no multiple of what one token covers.
        """
        unit = self.vae_factor * self.patch
        for width, height in sizes:
            if width % unit or height % unit:
                raise TrainingError(
                    f"pictures of {width} x {height} pixels do not fit {self.path}: each side must be a multiple of "
                    f"{unit}; change training.buckets"
                )

    def time_shift(self, height: int, width: int) -> float:
        """The factor by which the pipeline's scheduler shifts noise levels of latents of ``height`` by ``width``."""
        rows, columns = self.grid(height, width)
        return shift_factor(self.schedule, rows * columns)

    # Frozen parts

    def load_pipeline(self, precision: str = "float32", **parts: Any) -> Any:
        """Diffusers' pipeline of the bundle, from safetensors and local files only; ``parts`` replace its own."""
        import diffusers
        import torch

        absent = dict.fromkeys(self.absent)
        return getattr(diffusers, self.pipeline_class).from_pretrained(
            self.path, dtype=getattr(torch, precision), use_safetensors=True, local_files_only=True, **(absent | parts)
        )

    def load_encoders(self) -> Encoders:
        """The frozen VAE and text encoders."""
        return Encoders(self)

    @abstractmethod
    def encode_captions(self, pipeline: Any, captions: list[str], longest: int, device: Any) -> CaptionBatch:
        """What ``pipeline.encode_prompt`` computes of ``captions``, of at most ``longest`` tokens each."""

    def scale_latents(self, latents: Tensor) -> Tensor:
        """A posterior mean, (B, C, h, w), as the MM-DiT sees latents."""
        shift: float = self.vae_config.get("shift_factor") or 0.0
        scale: float = self.vae_config["scaling_factor"]
        return (latents - shift) * scale

    def posterior(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, as the MM-DiT sees latents: two (B, C, h, w)."""
        latents = vae.encode(pixels).latent_dist
        return self.scale_latents(latents.mean.float()), latents.std.float() * self.vae_config["scaling_factor"]

    # The MM-DiT

    def empty_transformer(self) -> Any:
        """The MM-DiT without weights, on the meta device."""
        import diffusers
        import torch

        with torch.device("meta"):
            return getattr(diffusers, self.transformer_class).from_config(self.config)

    def load_transformer(self) -> Any:
        """The MM-DiT in fp32, in training mode.

        Raises:
            TrainingError: the weights are not those of the configuration; diffusers would make up what is missing.
        """
        import diffusers

        folder = self.path / "transformer"
        check_weights(folder, {name: tuple(t.shape) for name, t in self.empty_transformer().state_dict().items()})
        model = getattr(diffusers, self.transformer_class).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        return model.float().train()

    def prepare(self, conditioning: dict[str, Tensor], nulls: int) -> dict[str, Tensor]:
        """Cached ``conditioning`` of a batch as `predict` takes it; ``nulls`` zero tokens where the family has them."""
        return conditioning

    @abstractmethod
    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """The velocity that ``backbone`` predicts, as the pipeline asks for it.

        Args:
            noisy: (B, C, h, w).
            timesteps: σ times the number of training timesteps, (B,).
            conditioning: from `prepare`.
            guidance: guidance scale of a guidance-distilled model; others have no use for it.

        Returns:
            (B, C, h, w), in the backbone's number format.
        """

    @staticmethod
    def sampling_arguments(sampling: Mapping[str, Any], count: int) -> dict[str, Any]:
        """How the pipeline is called for ``count`` prompts and ``sampling``, in which ``guidance_scale`` is that of
        classifier-free or of distilled guidance, whichever the family draws with."""
        return dict(sampling)


class Encoders:
    """The frozen parts of a bundle at work."""

    def __init__(self, family: Family) -> None:
        import torch

        self.family = family
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline = family.load_pipeline(transformer=family.empty_transformer())
        for part in family.parts:
            model = getattr(self.pipeline, part)
            if isinstance(model, torch.nn.Module):
                model.eval().requires_grad_(False).to(self.device)
        self.vae = self.pipeline.vae

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' posterior, scaled as the MM-DiT sees them.

        ``pixels``: (B, 3, H, W) in [-1, 1]; gives two (B, C, h, w), fp32, on the CPU.
        """
        import torch

        with torch.no_grad():
            mean, std = self.family.posterior(self.vae, pixels.to(self.device, self.vae.dtype))
        return mean.cpu(), std.cpu()

    def encode_captions(self, captions: Sequence[str], longest: int | None = None) -> CaptionBatch:
        """Conditioning of ``captions``, read to ``longest`` tokens (None: as many as a plain call reads)."""
        import torch

        with torch.no_grad():
            batch = self.family.encode_captions(
                self.pipeline, list(captions), longest or self.family.longest_text, self.device
            )
        return CaptionBatch({name: t.cpu() for name, t in batch.conditioning.items()}, batch.truncated)


def join_captions(batches: Sequence[CaptionBatch]) -> CaptionBatch:
    """One batch of all; texts shorter than the longest get zeros at their end."""
    import torch
    from torch.nn import functional

    joined = {}
    for name in batches[0].conditioning:
        tensors = [batch.conditioning[name] for batch in batches]
        if tensors[0].ndim > 2 or name == "mask":
            length = max(tensor.shape[1] for tensor in tensors)
            beside = (0, 0) * (tensors[0].ndim - 2)
            tensors = [functional.pad(tensor, (*beside, 0, length - tensor.shape[1])) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return CaptionBatch(joined, sum(batch.truncated for batch in batches))


def cut_captions(tokenizer: Any, captions: list[str], longest: int) -> int:
    """How many of ``captions`` are longer than ``longest`` tokens."""
    return sum(len(row) > longest for row in tokenizer(captions).input_ids)


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights in ``folder`` whose names and shapes are not ``expected``, or that lie there twice.

    Raises:
        TrainingError: the first few names that are wrong, and why.
    """
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    twice: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                if name in found:
                    twice.append(name)
                found[name] = tuple(stream.get_slice(name).get_shape())
    shapes = [
        f"{n} is {found[n]}, not {expected[n]}" for n in sorted(expected) if found.get(n, expected[n]) != expected[n]
    ]
    for names, what in (
        (sorted(expected.keys() - found.keys()), "lack"),
        (shapes, "do not fit config.json:"),
        (sorted(found.keys() - expected.keys()), "have names that config.json does not ask for:"),
        (twice, "hold in more than one file (keep one variant):"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise TrainingError(
                f"the weights at {folder} {what} {', '.join(names[:3])}{more}; fetch the base model again, or name one "
                "that is whole"
            )
