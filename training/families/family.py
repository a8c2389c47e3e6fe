"""What training asks of a family of MM-DiT models, and what all families answer alike.

A bundle is a folder that plain diffusers loads. Prompts are encoded by the very pipeline that will draw with the
model, so conditioning in training is what it is in sampling. Imports nothing heavy before a model is asked for.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lineage.digests import digest_json, digest_path
from training.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
INDEX = "model_index.json"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""PyTorch's names of the number formats that are trained in."""


class Family(ABC):
    """One bundle, seen as a model of its family; latents are (B, C, h, w), unpacked, in every family."""

    pipeline_class: ClassVar[str]
    """Diffusers' name of the pipeline."""
    transformer_class: ClassVar[str]
    """Diffusers' name of the MM-DiT; its blocks give (text stream, image stream)."""
    encoder_parts: ClassVar[tuple[str, ...]]
    """The parts that decide latents and text embeddings."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Those that a bundle may lack."""
    longest_text: ClassVar[int]
    """``max_sequence_length`` of a plain call of the pipeline, in tokens."""
    most_text: ClassVar[int] = 512
    """The largest ``max_sequence_length`` that the pipeline takes."""
    texts_at_once: ClassVar[int] = 64
    """Most captions that the text encoders read together."""
    caption_dropout: ClassVar[float] = 0.1
    """Share of samples that learn without a caption where the settings do not say: classifier-free guidance needs
    some, and a model that is drawn without it should forget nothing for it."""
    unconditional: ClassVar[str | None] = None
    """The prompt that classifier-free guidance leads away from, and that dropped captions are trained on; None: the
    MM-DiT itself is told the guidance."""
    mixes_lengths: ClassVar[bool] = False
    """Whether texts of different lengths may share a batch, because padding is masked."""
    even_levels: ClassVar[bool] = True
    """Whether the pipeline gives the scheduler levels that fall evenly from 1 to 1/n; else it chooses them itself."""

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
    def latent_channels(self) -> int:
        """C: latents are packed 2 by 2 before most MM-DiTs."""
        return int(self.config["in_channels"]) // 4

    @property
    def largest_side(self) -> int:
        """Most pixels in a picture's height or width: twice as many as in a plain call's."""
        return 2 * self.resolution

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

    @abstractmethod
    def encode_captions(self, pipeline: Any, captions: list[str], longest: int, device: Any) -> dict[str, Tensor]:
        """What ``pipeline.encode_prompt`` computes of N captions, of at most ``longest`` tokens each.

        By name: ``embeddings`` (N, L, D), ``pooled`` (N, P), ``mask`` (N, L), as far as the family has them, and
        ``truncated`` (N,) bool, whether a caption is longer than is read.
        """

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

    def load_transformer(self, precision: str = "fp32", deepspeed: Mapping[str, Any] | None = None) -> Any:
        """The MM-DiT in training mode, its weights read one by one into the format that is trained in.

        Args:
            deepspeed: DeepSpeed's configuration; under ZeRO-3 each process comes to hold its own shard only.

        Raises:
            TrainingError: the weights are not those of the configuration; diffusers would make up what is missing.
        """
        import diffusers
        import torch

        folder = self.path / "transformer"
        check_weights(folder, {name: tuple(t.shape) for name, t in self.empty_transformer().state_dict().items()})
        kind = getattr(torch, PRECISIONS[precision])
        transformer = getattr(diffusers, self.transformer_class)
        if deepspeed and deepspeed["zero_optimization"]["stage"] == 3:
            return load_sharded(lambda: transformer.from_config(self.config), folder, deepspeed).train()
        model = transformer.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=kind)
        return model.to(kind).train()

    def prepare(self, conditioning: dict[str, Tensor], nulls: int) -> dict[str, Tensor]:
        """Cached ``conditioning`` of a batch as `predict` takes it; ``nulls`` zero tokens where the family has them."""
        return conditioning

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, conditioning: Tensors, guidance: float | Tensor
    ) -> Tensor:
        """The velocity that ``backbone`` predicts, as the pipeline asks for it.

        Args:
            noisy: (B, C, h, w).
            timesteps: σ times the number of training timesteps, (B,).
            conditioning: from `prepare`.
            guidance: guidance scale of a guidance-distilled model, or one a row, (B,); others have no use for it.

        Returns:
            (B, C, h, w), in the backbone's number format.
        """
        dtype = backbone.dtype
        noisy, text = noisy.to(dtype), conditioning["embeddings"].to(dtype)
        told = self.told(noisy, timesteps, {**conditioning, "embeddings": text}, guidance)
        velocity = backbone(hidden_states=self.pack(noisy), encoder_hidden_states=text, return_dict=False, **told)[0]
        return self.unpack(velocity, *noisy.shape[-2:])

    @abstractmethod
    def told(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensors, guidance: float | Tensor) -> dict[str, Any]:
        """What the MM-DiT is told by name beside latents and text, which are in its number format already."""

    def pack(self, latents: Tensor) -> Tensor:
        """Latents as the MM-DiT takes them: 2 by 2 of them a token, (B, T, 4 C)."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        tokens: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
        return tokens

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """What `pack` was given, of this height and width."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        latents: Tensor = FluxPipeline._unpack_latents(tokens, height, width, 1)
        return latents

    @classmethod
    def sampling_arguments(cls, sampling: Mapping[str, Any], count: int) -> dict[str, Any]:
        """How the pipeline is called for ``count`` prompts and ``sampling``, in which ``guidance_scale`` is that of
        classifier-free or of distilled guidance, whichever the family draws with."""
        return dict(sampling)

    # Drawing, one denoising step at a time: pictures of different requests share a forward of the MM-DiT, each with its
    # own noise level, seed and guidance. Step by step it is what the pipeline does for the picture alone.

    def first_latents(self, seed: int, height: int, width: int, dtype: Any) -> Tensor:
        """Noise of a picture of ``height`` by ``width`` pixels, (1, C, h, w), drawn on the CPU as the pipeline does."""
        import torch

        shape = (1, self.latent_channels, height // self.vae_factor, width // self.vae_factor)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)

    def noise_levels(self, scheduler: Any, steps: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The course of one picture, from a copy of ``scheduler``, whose own state stays as it is.

        Returns:
            timesteps (steps,) and σ (steps + 1,), float32, on the CPU.
        """
        import numpy as np
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        own = type(scheduler).from_config(scheduler.config)
        config, more = own.config, {}
        if config.use_dynamic_shifting:
            rows, columns = self.grid(height // self.vae_factor, width // self.vae_factor)
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            more["mu"] = calculate_shift(rows * columns, *(config[name] for name in names))
        if self.even_levels:
            own.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **more)
        else:
            own.set_timesteps(steps, **more)
        return own.timesteps, own.sigmas

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): all (B, C, h, w), ``scale`` (B, 1, 1, 1)."""
        return unconditional + scale * (conditional - unconditional)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels of ``latents``, (B, 3, H, W), in [-1, 1] or a little beyond."""
        scaled = latents / self.vae_config["scaling_factor"] + (self.vae_config.get("shift_factor") or 0.0)
        pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        return pixels


def cut_captions(tokenizer: Any, captions: list[str], longest: int) -> Tensor:
    """Whether each of ``captions`` is longer than ``longest`` tokens: (N,) bool."""
    import torch

    return torch.tensor([len(row) > longest for row in tokenizer(captions).input_ids])


def weights_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name of each tensor in the safetensors files of ``folder``, and the open file that it is read from."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            yield from ((name, stream) for name in stream.keys())  # noqa: SIM118 (not a mapping)


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights in ``folder`` whose names and shapes are not ``expected``, or that lie there twice.

    Raises:
        TrainingError: the first few names that are wrong, and why.
    """
    found: dict[str, tuple[int, ...]] = {}
    twice = []
    for name, stream in weights_in(folder):
        twice += [name] if name in found else []
        found[name] = tuple(stream.get_slice(name).get_shape())
    wrong = [f"lack {name}" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"have {name}, which config.json does not ask for" for name in sorted(found.keys() - expected.keys())]
    wrong += [f"have {n} in more than one file (keep one variant)" for n in twice]
    common = sorted(expected.keys() & found.keys())
    wrong += [f"have {n} of shape {found[n]}, not {expected[n]}" for n in common if found[n] != expected[n]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise TrainingError(
            f"the weights at {folder} {', '.join(wrong[:3])}{more}; fetch the base model again, or name one that is "
            "whole"
        )


def load_sharded(build: Callable[[], Any], folder: Path, deepspeed: Mapping[str, Any]) -> Any:
    """What ``build`` makes, sharded over the processes as it is built, with the weights in ``folder``: no process ever
    holds more than its shard, and one parameter whole. All processes must call it."""
    import torch
    from deepspeed.runtime.zero import GatheredParameters, Init

    # In the format that the configuration names; with PyTorch's own linear layers, as the other stages compute.
    with Init(config_dict_or_path=dict(deepspeed), mem_efficient_linear=False):
        model = build()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, stream in weights_in(folder):
        with torch.no_grad(), GatheredParameters([parameters[name]] if name in parameters else [], modifier_rank=0):
            if name in buffers:
                buffers[name].copy_(stream.get_tensor(name))
            elif torch.distributed.get_rank() == 0:
                parameters[name].copy_(stream.get_tensor(name))
    return model


def shift_factor(scheduler: Mapping[str, Any], tokens: int) -> float:
    """The factor s by which a flow-matching scheduler moves noise levels: σ = s u / (1 + (s - 1) u).

    A static shift is s itself. A dynamic one computes μ from the number of image tokens, as the pipelines of
    diffusers do, and is s = exp(μ), or μ where its ``time_shift_type`` is linear. (Esser et al., arXiv 2403.03206,
    section 5.3.2.) A scheduler's ``shift_terminal`` depends on the number of sampling steps and plays no part here.

    Args:
        scheduler: the scheduler's configuration.
        tokens: image tokens of one picture.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", 1.0))
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - few) / (many - few)
    return float(mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu))
