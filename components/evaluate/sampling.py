"""Draw the evaluation set's pictures with one model, into a store that outlives the step.

A picture depends on its prompt, its seed, the sampling settings and the weights: its initial noise comes from its own
generator. What is drawn together is fixed by the evaluation set and the batch size, so that work which was cut off,
or shared out in shards, gives the same bits as work in one go.

The store has one folder for each `Terms`; pictures are reused only where all of them agree. A batch counts as drawn
once its list of digests is there, and the pictures agree with it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from components.evaluate.evaluation_set import EvaluationError, EvaluationSet, Prompt
from components.evaluate.settings import DrawingSettings
from lineage.digests import code_digest, digest_file, digest_json, digest_path, hex_of, packages_digest
from lineage.files import write_whole
from lineage.progress import track
from training.errors import TrainingError
from training.families.drawing import Drawer

PLAIN = DrawingSettings()


@dataclass(frozen=True)
class Terms:
    """Everything that decides the pictures, each by digest or by name."""

    weights: str
    evaluation_set: str
    batch_size: int
    code: str
    packages: str
    loaded: str
    machine: str

    @classmethod
    def of(cls, model: Path, evaluation_set: EvaluationSet, batch_size: int, how: DrawingSettings = PLAIN) -> Terms:
        """The terms under which ``model`` draws ``evaluation_set`` here and now."""
        code, machine = code_digest("components.evaluate", "training.families"), digest_json(describe_machine())
        weights, packages = digest_path(model), packages_digest()
        loaded = " ".join(f"{name}={value}" for name, value in how.model_dump().items())
        return cls(weights, evaluation_set.digest, batch_size, code, packages, loaded, machine)

    def folder(self, store: Path) -> Path:
        """Where the store keeps what was drawn under these terms."""
        return store / hex_of(digest_json(asdict(self)))


def describe_machine() -> dict[str, Any]:
    """The kind of machine: what makes two of them draw different bits."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "architecture": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def draw(
    model: Path,
    evaluation_set: EvaluationSet,
    batch_size: int,
    store: Path,
    who: str,
    shard: int = 0,
    shards: int = 1,
    how: DrawingSettings = PLAIN,
) -> tuple[Path, Terms]:
    """Draw what is missing of one shard; gives the store's folder and the terms that it stands for.

    Args:
        shard: which of ``shards`` equal shares of the batches to draw.

    Raises:
        EvaluationError: the model does not load, or draws something that is not a picture (NaN).
    """
    terms = Terms.of(model, evaluation_set, batch_size, how)
    folder = terms.folder(store)
    batches = _batches(evaluation_set, batch_size)
    missing = [n for n in range(shard, len(batches), shards) if not _is_whole(folder, n, batches[n])]
    if not missing:
        return folder, terms
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "terms.json", json.dumps(asdict(terms), indent=2).encode(), 0o644)
    sampling = evaluation_set.description.sampling.model_dump()
    count = sum(len(batches[number]) for number in missing)
    try:
        drawer = Drawer(model, **how.model_dump())
        for number in track(missing, f"sampling {who}", count, weight=batch_size):
            prompts, seeds = zip(*batches[number], strict=True)
            drawn = drawer.draw([prompt.text for prompt in prompts], seeds, sampling)
            _keep(drawn, batches[number], folder, number)
    except TrainingError as error:
        raise EvaluationError(f"the {who}: {error}") from error
    return folder, terms


def collect(folder: Path, evaluation_set: EvaluationSet, batch_size: int, target: Path) -> list[Path]:
    """Copy the drawn pictures, checked, from the store to ``target``; gives them in the order of the samples.

    Raises:
        EvaluationError: a picture is missing or is not the one that was drawn.
    """
    target.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(_batches(evaluation_set, batch_size)):
        for name in map(_name, batch):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        shutil.copyfile(folder / f"{number:05d}.json", target / f"{number:05d}.json")
        if not _is_whole(target, number, batch):
            raise EvaluationError(f"samples in {folder} were changed while they were read; remove it and run again")
        (target / f"{number:05d}.json").unlink()
    return [target / _name(sample) for sample in evaluation_set.samples]


def _batches(evaluation_set: EvaluationSet, size: int) -> list[list[tuple[Prompt, int]]]:
    samples = evaluation_set.samples
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _name(sample: tuple[Prompt, int]) -> str:
    return f"{sample[0].id}-{sample[1]}.png"


def _is_whole(folder: Path, number: int, batch: Sequence[tuple[Prompt, int]]) -> bool:
    """Whether every picture of the batch is there and as it was drawn."""
    try:
        listed = json.loads((folder / f"{number:05d}.json").read_text())
        return bool(listed == {name: digest_file(folder / name) for name in map(_name, batch)})
    except (OSError, ValueError):
        return False


def _keep(drawn: Sequence[Image.Image], batch: Sequence[tuple[Prompt, int]], folder: Path, number: int) -> None:
    """Keep the pictures of a batch, and then the list of their digests."""
    listed = {}
    for sample, picture in zip(batch, drawn, strict=True):
        target = folder / _name(sample)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        picture.save(partial, format="PNG")
        partial.replace(target)
        listed[target.name] = digest_file(target)
    write_whole(folder / f"{number:05d}.json", json.dumps(listed).encode(), 0o644)
