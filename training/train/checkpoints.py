"""Checkpoints: written whole or not at all, found by their digests, taken up only by the run that they fit.

    <folder>/step-00000120/
        manifest.json            which run, which step, digests of all else; written last
        rank-0.safetensors       what each process holds (`training.train.masters.Masters.state`)
        curves.jsonl             the points of the loss curves so far
    <folder>/marks/              averaged weights to choose among (`training.train.marks`)

A checkpoint is written into a folder with another name, file by file brought to the disk, and then renamed. Nothing
in it is pickled. Chance needs no saving: every draw is keyed by (seed, epoch, sample), and so by the step. Its manifest
names the marks up to its step too: without one of them it counts as damaged.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lineage.digests import LineageError, digest_file
from lineage.frozen import Frozen
from lineage.policy import differences
from training.errors import Stopped, TrainingError
from training.train.job import PICTURE, RunIdentity, TrainingJob, pictures_beside
from training.train.marks import BESIDE, to_disk, write_mark
from training.train.masters import Masters
from training.train.meter import Meter
from training.train.model import BACKBONE
from training.train.samples import SampleGrid
from training.train.stopping import StopRequest

MANIFEST, CURVES = "manifest.json", "curves.jsonl"
PREFIX, PARTIAL, DAMAGED = "step-", ".partial", ".damaged"


class Manifest(Frozen):
    """``manifest.json``."""

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
    """Name -> digest of every other file, and of every mark."""


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
            if changed := [name for name, digest in manifest.files.items() if digest_file(path / name) != digest]:
                raise TrainingError(f"{changed[0]} has other bytes than its manifest says")
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
    if different := list(differences(saved.model_dump(), run.model_dump())):
        raise TrainingError(
            f"checkpoint {path} is of another run: {'; '.join(different)}; run again with what it was begun with, or "
            f"remove {path.parent} to begin anew"
        )


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of ``step`` into; what was left of one that was cut off is removed."""
    partial = folder / f"{PREFIX}{step:08d}{PARTIAL}"
    with _writing(partial):
        for left in folder.glob(f"{PREFIX}*{PARTIAL}"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    return partial


def finish(partial: Path, manifest: Manifest, curves: bytes, keep: int) -> Path:
    """Write what the main process adds, give the checkpoint its name, and remove all but the ``keep`` newest."""
    folder, path = partial.parent, partial.with_suffix("")
    with _writing(partial):
        (partial / CURVES).write_bytes(curves)
        whole = manifest.model_copy(update={"files": manifest.files | {CURVES: digest_file(partial / CURVES)}})
        (partial / MANIFEST).write_text(whole.model_dump_json(indent=2) + "\n", "utf-8")
        for place in (partial / CURVES, partial / MANIFEST, partial):
            to_disk(place)
        partial.rename(path)
        to_disk(folder)
    for old in _found(folder)[keep:]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            raise TrainingError(
                f"the old checkpoint {old} cannot be removed: {error}; remove it and run again"
            ) from error
    return path


@contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """Raises:
    TrainingError: there is no room, or the block cannot write for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"checkpoint {partial.with_suffix('')} cannot be written: {error}; {newest(partial.parent)} and it is "
            "unharmed: make room there, or lower keep_checkpoints, and run again to go on from it"
        ) from error


class Saving:
    """What the loop does between two steps: takes a run up, saves it, draws pictures, stops where somebody asked."""

    def __init__(self, job: TrainingJob, accelerator: Any, model: nn.Module, masters: Masters, meter: Meter) -> None:
        self._job, self._settings, self._folder = job, job.settings, job.checkpoints
        self._main, self._rank = accelerator.is_main_process, accelerator.process_index
        self._model, self._masters, self._meter = model, masters, meter
        self._stop = StopRequest(accelerator) if job.checkpoints else None
        self._grid = SampleGrid(job.settings, accelerator.device)
        self._marks: dict[str, str] = {}

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; gives the number of optimizer steps that are done.

        Raises:
            TrainingError: it is of another run.
        """
        if self._folder is None:
            return 0
        found: list[Any] = [None]
        if self._main:  # one looks, so that all take up the same
            found[0], damaged = newest_whole(self._folder, self._job.identity)
            print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr, flush=True)
        dist.broadcast_object_list(found)
        if found[0] is None:
            return 0
        manifest = read_manifest(found[0])
        self._masters.restore(load_file(found[0] / f"rank-{self._rank}.safetensors"), manifest.updates)
        self._masters.restore_loss_scale(manifest.loss_scale)
        self._meter.restore(manifest.meter)
        self._marks = {name: digest for name, digest in manifest.files.items() if name.startswith(BESIDE)}
        if self._main:
            self._job.curves.write_bytes((found[0] / CURVES).read_bytes())
            print(f"training goes on from {found[0]}, step {manifest.step} of {self._settings.steps}", flush=True)
        dist.barrier()  # nobody trains on before the curves are back
        return manifest.step

    def after(self, done: int) -> None:
        """What is due after ``done`` optimizer steps.

        Raises:
            Stopped: somebody asked, and the checkpoint is written.
            TrainingError: the checkpoint or a mark cannot be written.
        """
        settings, last = self._settings, done == self._settings.steps
        if done in settings.marked:
            self._mark(done)
        if settings.samples.every and (done % settings.samples.every == 0 or last):
            self._draw(done)
        if self._folder is None or self._stop is None or last:
            return
        stop = self._stop.agreed()
        if stop or (settings.checkpoint_every and done % settings.checkpoint_every == 0):
            self._save(self._folder, done)
        if stop:
            raise Stopped(
                f"training was asked to stop and has saved step {done} of {settings.steps} in "
                f"{self._folder}; run again to go on from there"
            )

    def _mark(self, done: int) -> None:
        """Keep the averaged weights; the main process writes them."""
        self._meter.settle()
        weights = self._masters.gather(self._model, BACKBONE, self._main)
        failed: list[Any] = [None]
        if self._main:
            try:
                self._marks |= write_mark(self._job.marks, done, weights)
            except TrainingError as error:
                failed[0] = error
        dist.broadcast_object_list(failed)
        if failed[0]:
            raise failed[0]  # everywhere the same, as in `_save`

    def _draw(self, done: int) -> None:
        self._meter.settle()
        weights = self._masters.gather(self._model, BACKBONE, self._main)
        if self._main:
            picture = pictures_beside(self._job.curves) / f"step-{done:08d}.png"
            self._grid.draw(weights, picture)
            print(f"{PICTURE}{picture}", flush=True)

    def _save(self, folder: Path, done: int) -> None:
        """Each process writes its own file; the main process begins and ends the checkpoint."""
        self._meter.settle()
        partial = [begin(folder, done) if self._main else None]
        dist.broadcast_object_list(partial)
        assert partial[0] is not None
        path = partial[0] / f"rank-{self._rank}.safetensors"
        written: list[Any] = [None] * dist.get_world_size()
        try:
            with _writing(partial[0]):
                save_file({n: t.detach().cpu().contiguous() for n, t in self._masters.state().items()}, path)
                to_disk(path)
                mine: Any = (path.name, digest_file(path))
        except TrainingError as error:
            mine = error
        dist.all_gather_object(written, mine)
        for entry in written:
            if isinstance(entry, TrainingError):
                raise entry  # everywhere the same, and not the others' loss of a peer
        if self._main:
            manifest = Manifest(
                run=self._job.identity,
                step=done,
                updates=self._masters.updates,
                loss_scale=self._masters.loss_scale(),
                meter=self._meter.state(),
                files=dict(written) | self._marks,
            )
            finish(partial[0], manifest, self._job.curves.read_bytes(), self._settings.keep_checkpoints)
        dist.barrier()
