"""LoRA: low-rank adapters beside the attention's matrices, the only weights of the MM-DiT that then learn.

W' = W + (α / r) B A, with A (r, in) and B (out, r); B begins as zero. (Hu et al., arXiv 2106.09685.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training.errors import TrainingError
from training.families.family import Family, weights_in
from training.settings import LoraSettings

FOLDER = "lora"
"""Where the adapter lies in a candidate."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""Ends of peft's names for A and B."""


def adapter_config(settings: LoraSettings) -> Any:
    """Peft's own configuration of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.target_modules),
        init_lora_weights=True,
    )


def add_adapter(backbone: Any, settings: LoraSettings, seed: int) -> None:
    """Freeze ``backbone`` and put an adapter into it, its first weights decided by ``seed``.

    Raises:
        TrainingError: no linear layer of the backbone has one of the names asked for, or another module has it too.
    """
    import torch

    backbone.requires_grad_(False)
    torch.manual_seed(seed)
    known = [name for name, module in backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    unknown = [t for t in settings.target_modules if not any(f".{name}".endswith(f".{t}") for name in known)]
    if unknown:
        raise TrainingError(
            f"lora.target_modules names {', '.join(unknown)}, which no linear layer of {type(backbone).__name__} ends "
            f"in; it has, among others, {', '.join(sorted({name.split('.', 2)[-1] for name in known})[:8])}"
        )
    ends = tuple(f".{target}" for target in settings.target_modules)
    named = {name: module for name, module in backbone.named_modules() if f".{name}".endswith(ends)}
    other = [f"{name} ({type(module).__name__})" for name, module in named.items() if name not in known]
    if other:
        raise TrainingError(
            f"lora.target_modules also names {', '.join(other[:3])}, but only a linear layer can have an adapter; name "
            f"linear layers by more of their names, such as {next(name for name in named if name in known)}"
        )
    backbone.add_adapter(adapter_config(settings))


def merged(transformer: Path, weights: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """The matrices of the MM-DiT in folder ``transformer`` with the adapter ``weights`` added to them, in fp32."""
    scale, matrices = settings.alpha / settings.rank, {}
    for name, stream in weights_in(transformer):
        layer = name.removesuffix(".weight")
        if layer + DOWN in weights:
            change = weights[layer + UP].float() @ weights[layer + DOWN].float()
            matrices[name] = stream.get_tensor(name).float() + scale * change
    return matrices


def save_adapter(family: Family, weights: Mapping[str, Tensor], settings: LoraSettings, folder: Path) -> None:
    """Write the adapter as diffusers' ``load_lora_weights`` reads it, α and rank in its metadata."""
    import diffusers

    metadata = {  # peft's sets have another order in each process
        name: sorted(value) if isinstance(value, set) else value
        for name, value in adapter_config(settings).to_dict().items()
    }
    getattr(diffusers, family.pipeline_class).save_lora_weights(
        folder,
        transformer_lora_layers={name.replace(".default.", "."): tensor for name, tensor in sorted(weights.items())},
        transformer_lora_adapter_metadata=metadata,
    )
    for path in folder.glob("*.safetensors"):
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata in order: safetensors writes them in another one each time.

    The file is the header's length in 8 bytes, the header as JSON padded with spaces, and the tensors.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
