"""Does a scorer judge by a network that the candidate was trained to please?

Two ways to find out, neither by name. **Tensors**: weights in safetensors are compared value by value, rounded to
bf16, whatever they are called and however deep they lie; one shared large tensor is enough. **Features**: what two
networks make of fixed probe pictures is compared by the pictures' similarities to one another, which neither scaling
nor rotation of the features changes; this also finds weights that were quantised, fused or transposed.

Tensors are compared without torch, which the image of the plan step does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import TrainingError
from training.settings import teachers

Sketch = NDArray[np.float32]

LARGE = 4096
"""Fewest values of a tensor that counts."""
POSITIONS = 1024
"""Values of a tensor that are compared, at places that its size alone decides."""
ALIKE = 0.99
"""Correlation of similarities from which two networks count as one."""
OPAQUE = (".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".h5", ".msgpack", ".pkl", ".npz")
"""Formats of weights that are not looked into."""
FLOATS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3": ml_dtypes.float8_e4m3fn},
}
"""Kind of values in safetensors -> numpy's."""


def find_leakage(scorers: Sequence[tuple[str, str]], training: Mapping[str, Any]) -> list[str]:
    """In words, each scorer (name, place of its weights) that holds a tensor of a network supervising training."""
    return [
        f"{name}: {shared[0]}, as named by training.{key}"
        for key, teacher in teachers(training).items()
        for name, weights in scorers
        if (shared := shared_tensors(Path(weights), teacher))
    ]


def refuse_leakage(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Before anything is trained: refuse scorers that `find_leakage` finds, unless the settings allow them.

    Args:
        evaluation, training: the sections of the configuration.

    Raises:
        TrainingError: which scorer holds what, and what to do.
    """
    if evaluation.get("allow_teacher_leakage"):
        return
    scorers = [(scorer["scorer"], scorer["weights"]) for scorer in evaluation.get("scorers", ())]
    if found := find_leakage(scorers, training):
        raise TrainingError(refusal(found))


def refusal(found: Sequence[str]) -> str:
    """Why leakage is refused, and what to do."""
    return (
        f"a scorer judges by a network that the candidate was trained to please: {'; '.join(found)}; choose another "
        "scorer, or set evaluation.allow_teacher_leakage"
    )


def shared_tensors(scorer: Path, teacher: Path) -> list[str]:
    """In words, each large tensor of the scorer that the teacher has too; or that nothing can be compared.

    Args:
        scorer, teacher: a file or a folder of weights.
    """
    theirs, mine = _sketches(teacher), _sketches(scorer)
    if not mine and (opaque := [file.name for file in _files(scorer) if file.suffix in OPAQUE]):
        return [f"{opaque[0]} cannot be compared with the teacher's weights; convert it to safetensors"]
    found = []
    for size in sorted(mine.keys() & theirs.keys()):
        for name, sketch in mine[size]:
            other = next((known for known, values in theirs[size] if _equal(sketch, values)), None)
            if other:
                found.append(f"{name} is the teacher's {other} ({size} values)")
    return found


def likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of two networks' similarities between the same N pictures, from their features (N, d)."""
    relations = []
    for features in (a, b):
        centred = features - features.mean(axis=0)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        if not lengths.all() or not np.isfinite(centred).all():
            return 0.0
        scaled = centred / lengths
        relations.append((scaled @ scaled.T)[np.triu_indices(len(a), 1)])
    return float(np.corrcoef(*relations)[0, 1])


def probe_pictures(count: int = 48, side: int = 128) -> list[Image.Image]:
    """Fixed pictures of many colours and shapes: smooth noise under a random box."""
    rng = np.random.default_rng(20260)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        left, upper, width, height = rng.integers(side // 8, side // 2, 4).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        picture.paste(colour, (left, upper, left + width, upper + height))
        pictures.append(picture)
    return pictures


def teacher_features(teacher: Path, pictures: Sequence[Image.Image]) -> list[NDArray[np.float64]]:
    """What a teacher makes of pictures, as others might use it: pooled, and the mean of its patches; each (N, d)."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from training.teach.teacher import pixel_tensor

    model: Any = AutoModel.from_pretrained(teacher, use_safetensors=True, local_files_only=True).float().eval()
    vision = getattr(model, "vision_model", model)
    if (teacher / "preprocessor_config.json").is_file():
        processor: Any = AutoImageProcessor.from_pretrained(teacher, local_files_only=True)
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    else:
        size = (int(vision.config.image_size),) * 2
        pixels = pixel_tensor([p.resize(size, Image.Resampling.BICUBIC) for p in pictures], [0.5] * 3, [0.5] * 3)
    with torch.no_grad():
        seen = vision(pixel_values=pixels)
    found = [seen.pooler_output, seen.last_hidden_state.mean(dim=1)]
    return [features.flatten(1).double().numpy() for features in found if features is not None]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _sketches(path: Path) -> dict[int, list[tuple[str, Sketch]]]:
    """Number of values -> (name, `POSITIONS` of them) of each large tensor that says anything."""
    found: dict[int, list[tuple[str, Sketch]]] = {}
    for file in _files(path):
        for name, size, sketch in _tensors(file) if file.suffix == ".safetensors" else ():
            if len(np.unique(sketch)) > 16:  # ones, zeros and the like are in everybody's network
                found.setdefault(size, []).append((name, sketch))
    return found


def _tensors(file: Path) -> Iterator[tuple[str, int, Sketch]]:
    """Name, number of values, and `POSITIONS` of them of each large tensor of floats in a file of safetensors."""
    with file.open("rb") as opened:
        begin = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(begin - 8))
    header.pop("__metadata__", None)
    for name, about in header.items():
        size, kind = math.prod(about["shape"]), about["dtype"]
        if size >= LARGE and kind in FLOATS:
            values = np.memmap(file, FLOATS[kind], "r", begin + about["data_offsets"][0], (size,))
            places = np.random.default_rng(size).integers(size, size=POSITIONS)
            yield name, size, values[places].astype(ml_dtypes.bfloat16).astype(np.float32)


def _equal(a: Sketch, b: Sketch) -> bool:
    """Equal but for rounding: a cast through fp16 or bf16 moves a value by at most one step of bf16."""
    step = 2.0**-7 * np.maximum(np.abs(a), np.abs(b)) + 1e-6 * np.abs(b).max()
    return bool((np.abs(a - b) <= step).mean() >= 0.99 and np.corrcoef(a, b)[0, 1] > 0.9)
