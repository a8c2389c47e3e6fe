"""The candidate: the base bundle with the trained transformer in place of its own.

Plain diffusers loads it, and nothing in it varies from run to run: the same weights give the same digest. Where an
adapter was trained, the transformer has it merged into it, and ``lora/`` holds it by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.errors import TrainingError
from training.families import family_of
from training.settings import LoraSettings
from training.train import lora


def export_candidate(
    base: Path, weights: Mapping[str, Tensor], candidate: Path, adapter: LoraSettings | None = None
) -> None:
    """Write ``base`` with the parameters ``weights`` of its transformer to ``candidate``, whole or not at all.

    Tensors keep the base's names, file layout and number format; buffers keep its values. With ``adapter``,
    ``weights`` are an adapter's.

    Raises:
        TrainingError: weights are missing, left over, of another shape or not finite, or the place is taken.
    """
    _check_free(candidate)
    partial = candidate.with_name(f".{candidate.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    # Where the base is a candidate itself, the adapter that it came with is no part of this one.
    shutil.copytree(base, partial, ignore=lambda place, _: [lora.FOLDER] if Path(place) == base else [])
    left = dict(weights)
    if adapter:
        left = lora.merged(base / "transformer", weights, adapter)
        lora.save_adapter(family_of(base), weights, adapter, partial / lora.FOLDER)
    for path in sorted((partial / "transformer").glob("*.safetensors")):
        _replace_weights(path, left)
    if left:
        raise TrainingError(f"the base transformer has no {', '.join(sorted(left)[:3])}; is {base} the one trained?")
    if candidate.exists():
        candidate.rmdir()
    partial.replace(candidate)


def _check_free(candidate: Path) -> None:
    if candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        raise TrainingError(f"{candidate} is there already; a candidate is never overwritten: name another place")
    candidate.parent.mkdir(parents=True, exist_ok=True)


def _replace_weights(path: Path, left: dict[str, Tensor]) -> None:
    """Write the tensors that ``left`` has into the file at ``path``, and take them out of ``left``."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
        for name in stream.keys():  # noqa: SIM118 (not a mapping)
            old = stream.get_tensor(name)
            new = left.pop(name, None)
            tensors[name] = old.clone() if new is None else _fitting(name, new, old)
    path.unlink()
    save_file(tensors, path, metadata=metadata)


def _fitting(name: str, new: Tensor, old: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise TrainingError(f"{name} was trained as {tuple(new.shape)}, but the base has {tuple(old.shape)}")
    if not torch.isfinite(new).all():
        raise TrainingError(f"{name} has values that are not finite; lower the learning rate and train again")
    return new.to(old.dtype).contiguous()
