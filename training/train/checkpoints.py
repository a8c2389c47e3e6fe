"""Checkpoints: written whole or not at all, found by their digests, taken up only by the run that they fit.

    <folder>/step-00000120/
        manifest.json            which run, which step, digests of all else; written last
        rank-0.safetensors       the shards of each process (`training.train.masters.Shards.state`)
        curves.jsonl             the points of the loss curves so far

A checkpoint is written into a folder with another name, file by file brought to the disk, and then renamed. Nothing
in it is pickled. Chance needs no saving: every draw is keyed by (seed, epoch, sample), and so by the step.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lineage.digests import LineageError, digest_file
from lineage.policy import differences
from training.errors import TrainingError

MANIFEST, CURVES = "manifest.json", "curves.jsonl"
CODE = ("training.settings", *(f"training.{room}" for room in ("families", "teach", "encode", "train")))
"""Whose sources decide the weights that a run gives."""
ABANDONED = 14 * 24 * 3600
"""Seconds after which checkpoints that no run has taken up are removed."""
PREFIX, PARTIAL, DAMAGED = "step-", ".partial", ".damaged"


class RunIdentity(BaseModel):
    """What decides the weights that a run gives: a checkpoint fits only the same run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int
    settings: dict[str, Any]
    """`TrainingSettings.deciding`."""
    features: str
    """`training.encode.info.features_digest`."""
    base_model: str
    """Digest of the base model's folder."""
    code: str
    """Digest of the sources of `CODE`."""
    packages: str
    """Digest of the names and versions of everything installed."""


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    run: RunIdentity
    step: int
    """Optimizer steps done."""
    updates: int
    """Updates of the average."""
    loss_scale: dict[str, float]
    meter: dict[str, Any]
    """Losses that are not in a point of the curves yet, and those that divergence is judged by."""
    files: dict[str, str]
    """Name -> digest of every other file."""


def checkpoint_name(step: int) -> str:
    """Name of the folder of the checkpoint after ``step`` optimizer steps."""
    return f"{PREFIX}{step:08d}"


def newest_whole(folder: Path, run: RunIdentity) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of ``run`` whose digests hold, and why newer ones were passed over.

    Those are put aside under another name, so that they do not take the place of one that is written later.

    Raises:
        TrainingError: the newest readable checkpoint is of another run, or of another number of processes.
    """
    damaged = []
    for path in _found(folder):
        try:
            manifest = read_manifest(path)
            for name, digest in manifest.files.items():
                if digest_file(path / name) != digest:
                    raise TrainingError(f"{name} has other bytes than its manifest says")
        except (OSError, ValidationError, TrainingError, LineageError) as error:
            aside = path.with_suffix(DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            damaged.append(f"checkpoint {path} is damaged and passed over: {error}; it is now {aside.name}")
            continue
        _check_fits(path, manifest.run, run)
        return path, damaged
    return None, damaged


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at ``path``."""
    return Manifest.model_validate_json((path / MANIFEST).read_text("utf-8"))


def newest(folder: Path | None) -> str:
    """The newest checkpoint, in words for an error message."""
    found = _found(folder) if folder else []
    return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint"


def _found(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and not p.suffix), reverse=True)


def _check_fits(path: Path, saved: RunIdentity, run: RunIdentity) -> None:
    if saved.processes != run.processes:
        raise TrainingError(
            f"checkpoint {path} was saved by {saved.processes} processes and this run has {run.processes}: each holds "
            f"its own shard of weights and optimizer state, and the parts of a sum are added in another order; set "
            f"processes to {saved.processes}, or remove {path.parent} to begin anew"
        )
    different = list(differences(saved.model_dump(), run.model_dump()))
    if different:
        raise TrainingError(
            f"checkpoint {path} is of another run: {'; '.join(different)}; run again with what it was begun with, or "
            f"remove {path.parent} to begin anew"
        )


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of ``step`` into; what was left of one that was cut off is removed.

    Raises:
        TrainingError: there is no room, or the folder cannot be written to for another reason.
    """
    partial = folder / (checkpoint_name(step) + PARTIAL)
    try:
        for left in folder.glob(f"{PREFIX}*{PARTIAL}"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(partial, error) from error
    return partial


def write_shard(partial: Path, rank: int, tensors: Mapping[str, Any]) -> tuple[str, str]:
    """Write one process's shards and bring them to the disk; gives name and digest of the file.

    Raises:
        TrainingError: the disk is full, or the file cannot be written for another reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = partial / f"rank-{rank}.safetensors"
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        _to_disk(path)
        return path.name, digest_file(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(partial, error) from error


def finish(partial: Path, manifest: Manifest, curves: bytes, keep: int) -> Path:
    """Write what the main process adds, give the checkpoint its name, and remove all but the ``keep`` newest.

    Raises:
        TrainingError: the disk is full, or a file cannot be written for another reason.
    """
    folder, path = partial.parent, partial.with_suffix("")
    try:
        (partial / CURVES).write_bytes(curves)
        whole = manifest.model_copy(update={"files": manifest.files | {CURVES: digest_file(partial / CURVES)}})
        (partial / MANIFEST).write_text(whole.model_dump_json(indent=2) + "\n", "utf-8")
        for place in (partial / CURVES, partial / MANIFEST, partial):
            _to_disk(place)
        partial.rename(path)
        _to_disk(folder)
    except OSError as error:
        raise cannot_write(partial, error) from error
    for old in _found(folder)[keep:]:
        shutil.rmtree(old, onerror=_cannot_remove)
    return path


def remove_abandoned(folder: Path, own: str) -> None:
    """Remove checkpoints of runs that nobody took up again: those in ``folder`` but ``own`` whose last is older than
    `ABANDONED`."""
    for run in folder.glob("*") if folder.is_dir() else ():
        newest_change = max((path.stat().st_mtime for path in (run, *run.iterdir())), default=0.0)
        if run.name != own and time.time() - newest_change > ABANDONED:
            print(f"removing the checkpoints at {run}: no run has taken them up for two weeks", flush=True)
            shutil.rmtree(run, onerror=_cannot_remove)


def _cannot_remove(remove: Any, path: str, error: Any) -> None:
    raise TrainingError(f"an old checkpoint cannot be removed: {error[1]}; look at {path} and run again")


def cannot_write(partial: Path, error: Exception) -> TrainingError:
    """What to say when a checkpoint cannot be written."""
    return TrainingError(
        f"checkpoint {partial.with_suffix('')} cannot be written: {error}; {newest(partial.parent)} and it is "
        "unharmed: make room there, or lower keep_checkpoints, and run again to go on from it"
    )


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
