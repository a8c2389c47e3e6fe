"""Checkpoints: written whole or not at all, found by their digests, taken up only by the run that they fit.

    <folder>/step-00000120/
        manifest.json            which run, which step, digests of all else; written last
        rank-0.safetensors       what each process holds (`training.train.masters.Masters.state`)
        curves.jsonl             the points of the loss curves so far
    <folder>/marks/              averaged weights after some of the steps, to choose among afterwards
        step-00000120.safetensors    what is trained, in fp32, by the names of the backbone's parameters

Marks lie beside a run's candidate where there are no checkpoints. A checkpoint is written into a folder with another
name, file by file brought to the disk, and then renamed. Nothing in it is pickled. Chance needs no saving: every draw
is keyed by (seed, epoch, sample), and so by the step. Its manifest names the marks up to its step too: without one of
them it counts as damaged.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lineage.digests import LineageError, digest_file
from lineage.frozen import Frozen
from lineage.policy import differences
from training.encode.store import written_whole
from training.errors import STOP_FILE, Stopped, TrainingError
from training.train.job import MARKS, PICTURE, RunIdentity, TrainingJob, mark_name, pictures_beside
from training.train.masters import Masters
from training.train.meter import Meter
from training.train.model import BACKBONE
from training.train.samples import SampleGrid

MANIFEST, CURVES = "manifest.json", "curves.jsonl"
PREFIX, PARTIAL, DAMAGED = "step-", ".partial", ".damaged"
BESIDE = f"../{MARKS}/"
"""How a checkpoint names the folder of its run's marks."""


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
    """Within the block the checkpoint's files are written.

    Raises:
        TrainingError: there is no room, or they cannot be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"checkpoint {partial.with_suffix('')} cannot be written: {error}; {newest(partial.parent)} and it is "
            "unharmed: make room there, or lower keep_checkpoints, and run again to go on from it"
        ) from error


def write_mark(folder: Path, step: int, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Write the mark of ``step``, whole or not at all; gives its name, as a checkpoint knows it, and its digest.

    Raises:
        TrainingError: there is no room, or it cannot be written for another reason.
    """
    path = folder / mark_name(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(dict(weights), partial)
        to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the weights of step {step} cannot be kept at {path}: {error}; make room there, or lower selection.marks, "
            "and run again"
        ) from error
    return {BESIDE + path.name: digest_file(path)}


def to_disk(path: Path) -> None:
    """Have a file or a folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Saving:
    """What the loop does between two steps: takes a run up, saves it, draws pictures, stops where somebody asked.

    All processes have to call each method.
    """

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
        if (folder := self._folder) is None:
            return 0
        # One looks, so that all take up the same.
        found = _everywhere(lambda: self._newest(folder) if self._main else None)[0]
        if found is None:
            return 0
        manifest = read_manifest(found)
        self._masters.restore(load_file(found / f"rank-{self._rank}.safetensors"), manifest.updates)
        self._masters.restore_loss_scale(manifest.loss_scale)
        self._meter.restore(manifest.meter)
        self._marks = {name: digest for name, digest in manifest.files.items() if name.startswith(BESIDE)}
        if self._main:
            self._job.curves.write_bytes((found / CURVES).read_bytes())
            print(f"training goes on from {found}, step {manifest.step} of {self._settings.steps}", flush=True)
        dist.barrier()  # nobody trains on before the curves are back
        return manifest.step

    def _newest(self, folder: Path) -> Path | None:
        found, damaged = newest_whole(folder, self._job.identity)
        print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr, flush=True)
        return found

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
        marks = self._job.marks
        self._marks |= _everywhere(lambda: write_mark(marks, done, weights) if self._main else {})[0]

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
        place = _everywhere(lambda: begin(folder, done) if self._main else None)[0]
        written = _everywhere(lambda: self._write(place))
        if self._main:
            manifest = Manifest(
                run=self._job.identity,
                step=done,
                updates=self._masters.updates,
                loss_scale=self._masters.loss_scale(),
                meter=self._meter.state(),
                files=dict(written) | self._marks,
            )
            finish(place, manifest, self._job.curves.read_bytes(), self._settings.keep_checkpoints)
        dist.barrier()

    def _write(self, place: Path) -> tuple[str, str]:
        """Write this process's file; gives its name and digest."""
        path = place / f"rank-{self._rank}.safetensors"
        with _writing(place):
            save_file({n: t.detach().cpu().contiguous() for n, t in self._masters.state().items()}, path)
            to_disk(path)
            return path.name, digest_file(path)


def _everywhere(do: Callable[[], Any]) -> list[Any]:
    """What ``do`` gives in each process; an error in one is raised in all, and not the others' loss of a peer."""
    every: list[Any] = [None] * dist.get_world_size()
    try:
        mine = do()
    except TrainingError as error:
        mine = error
    dist.all_gather_object(every, mine)
    for given in every:
        if isinstance(given, TrainingError):
            raise given
    return every


class StopRequest:
    """Whether any process of the job has been asked to stop; all end after the same step.

    The launcher asks by a file, which is found by processes that were only starting then; who sends SIGTERM to a
    process itself is heard too.
    """

    def __init__(self, accelerator: Any) -> None:
        self._asked = False
        self._file = Path(os.environ[STOP_FILE]) if STOP_FILE in os.environ else None
        # On the CPU, whatever the weights are on: the answer costs no wait for a device.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether to stop now: the same answer for all processes, which all must ask."""
        mine = self._asked or (self._file is not None and self._file.exists())
        if self._group is None:
            return mine
        asked = torch.tensor(int(mine))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)
