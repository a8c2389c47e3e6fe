"""The scores artifact: what evaluate writes and the gate reads, in a folder.

``scores.parquet``
    One row a score: `COLUMNS`. Higher is better in every measure. A measure is an axis (``alignment``), a part of one
    (``alignment/glasses``, ``aesthetics/pickscore``), ``memorisation``: −1 for a picture that lies nearer to a training
    picture than pictures that nobody trained on do, 0 for any other, or ``diversity``: how far a picture lies from the
    others of its prompt, for prompts with two seeds at least.
``evaluation.json``
    The digests of everything that decides the scores. The gate reads ``scores`` and ``sets`` (digests of the two other
    files; ``sets`` only where there is one), ``evaluation_set`` with ``digest``, ``prompts`` (id -> attributes),
    ``seeds`` (id -> list of seeds) and ``sealed`` (ids of prompts that only confirm), and for each model compared
    ``{"digest": …}`` under its name in `MODELS`. Where the scores
    could not be made, ``unusable`` says why in plain words: the verdict is then invalid, for that reason.
``sets.safetensors``
    Features for measures that judge a model's pictures as a set, such as the kernel distance: see `SetMeasure`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lineage.digests import LineageError, digest_path
from lineage.frozen import Frozen

COLUMNS = ("prompt", "seed", "model", "measure", "value")
MODELS = ("candidate", "incumbent", "anchor")
"""Who is scored; ``anchor``, whom no candidate may be worse than, only where it is another than the incumbent."""
DIVERSITY = "diversity"
TABLE_FILE, EVALUATION_FILE, SETS_FILE = "scores.parquet", "evaluation.json", "sets.safetensors"
REFERENCES = "references"
Features = NDArray[np.float32]


class Kernel(Frozen):
    """How alike two pictures are.

    ``polynomial``: (x·y/d + 1)³ for features of d dimensions, of KID (Bińkowski et al., Demystifying MMD GANs, 2018).
    ``rbf``: exp(−|x−y|²/2σ²), of CMMD (Jayasumana et al., Rethinking FID, 2024).
    """

    name: Literal["polynomial", "rbf"]
    sigma: float = 0.0
    """σ of ``rbf``, in the features' units."""
    scale: float = 1.0
    """By which the distance is multiplied when it is shown; CMMD is reported times 1000."""


@dataclass(frozen=True)
class SetMeasure:
    """A squared distance (MMD²) between a model's pictures and the references; its score is the distance, negated."""

    measure: str
    """An axis or a part of one, such as ``realism/kid``."""
    kernel: Kernel
    features: Mapping[str, Features]
    """Model -> (N, d), in the order of `Sets.rows`; `REFERENCES` -> (M, d)."""


@dataclass(frozen=True)
class Sets:
    """What ``sets.safetensors`` holds."""

    rows: tuple[tuple[str, int], ...]
    """Prompt and seed of each of the N pictures."""
    measures: tuple[SetMeasure, ...]


def write_sets(folder: Path, rows: Sequence[tuple[str, int]], measures: Sequence[SetMeasure]) -> str:
    """Write ``sets.safetensors`` into the scores folder; gives its digest, for ``evaluation.json``."""
    from safetensors.numpy import save_file

    tensors = {
        f"{measure.measure}:{who}": np.ascontiguousarray(features, dtype=np.float32)
        for measure in measures
        for who, features in measure.features.items()
    }
    kernels = {measure.measure: measure.kernel.model_dump() for measure in measures}
    # One name only: safetensors writes several in an order that changes from call to call.
    described = json.dumps({"rows": [list(row) for row in rows], "kernels": kernels}, sort_keys=True)
    save_file(tensors, folder / SETS_FILE, metadata={"sets": described})
    return digest_path(folder / SETS_FILE)


def read_sets(path: Path) -> Sets:
    """Read what `write_sets` wrote.

    Raises:
        LineageError: it is missing or malformed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            described = json.loads(stored.metadata()["sets"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        rows = tuple((str(prompt), int(seed)) for prompt, seed in described["rows"])
        kernels = {name: Kernel.model_validate(kernel) for name, kernel in described["kernels"].items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise LineageError(f"{path} does not hold the features of a set-level measure: {error}") from error
    found: dict[str, dict[str, Features]] = {name: {} for name in kernels}
    for key, tensor in tensors.items():
        measure, _, who = key.rpartition(":")
        found.setdefault(measure, {})[who] = tensor
    if set(found) != set(kernels):
        raise LineageError(f"{path} names kernels for {sorted(kernels)}, and holds features for {sorted(found)}")
    return Sets(rows, tuple(SetMeasure(name, kernels[name], found[name]) for name in sorted(kernels)))


def stated(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict repeats of ``evaluation.json``: all but what the evaluation set's digest stands for anyway."""
    short = {"prompts", "seeds", "sealed"}
    whole = {name: value for name, value in evaluation["evaluation_set"].items() if name not in short}
    return {**evaluation, "evaluation_set": whole}
