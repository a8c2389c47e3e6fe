"""When a checkpoint is due, a picture is due, or somebody asked to stop: what the loop does between two steps."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from training.errors import Stopped, TrainingError
from training.train import checkpoints
from training.train.checkpoints import Manifest
from training.train.job import Job
from training.train.masters import Shards
from training.train.meter import Meter
from training.train.model import BACKBONE
from training.train.samples import SampleGrid
from training.train.stopping import StopRequest


class Saving:
    """Takes a run up, and keeps what it has come to."""

    def __init__(
        self,
        job: Job,
        accelerator: Any,
        model: nn.Module,
        shards: Shards,
        meter: Meter,
        stop: StopRequest | None,
    ) -> None:
        self._job, self._settings, self._accelerator = job, job.settings, accelerator
        self._model, self._shards, self._meter, self._stop = model, shards, meter, stop
        self._grid = SampleGrid(job.settings, accelerator.device)

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; gives the number of optimizer steps that are done.

        Raises:
            TrainingError: it is of another run.
        """
        folder = self._job.checkpoints
        if folder is None:
            return 0
        found: list[Any] = [None]
        if self._accelerator.is_main_process:  # one looks, so that all take up the same
            found[0], damaged = checkpoints.newest_whole(folder, self._job.identity)
            for line in damaged:
                print(line, file=sys.stderr, flush=True)
        dist.broadcast_object_list(found)
        if found[0] is None:
            return 0
        manifest = checkpoints.read_manifest(found[0])
        tensors = load_file(found[0] / f"rank-{self._accelerator.process_index}.safetensors")
        self._shards.restore(tensors, manifest.updates)
        self._shards.restore_loss_scale(manifest.loss_scale)
        self._meter.restore(manifest.meter)
        if self._accelerator.is_main_process:
            self._job.curves.write_bytes((found[0] / checkpoints.CURVES).read_bytes())
            print(f"training goes on from {found[0]}, step {manifest.step} of {self._settings.steps}", flush=True)
        dist.barrier()  # nobody trains on before the curves are back
        return manifest.step

    def after(self, done: int) -> None:
        """What is due after ``done`` optimizer steps.

        Raises:
            Stopped: somebody asked, and the checkpoint is written.
            TrainingError: the checkpoint cannot be written.
        """
        settings, last = self._settings, done == self._settings.steps
        if settings.samples.every and (done % settings.samples.every == 0 or last):
            self._draw(done)
        if self._stop is None or last:
            return
        stop = self._stop.agreed()
        if stop or (settings.checkpoint_every and done % settings.checkpoint_every == 0):
            self._save(done)
        if stop:
            raise Stopped(
                f"training was asked to stop and has saved step {done} of {settings.steps} in "
                f"{self._job.checkpoints}; run again to go on from there"
            )

    def _draw(self, done: int) -> None:
        self._meter.settle()
        main = self._accelerator.is_main_process
        weights = self._shards.gather(self._model, BACKBONE, main)
        if main:
            picture = self._job.samples / f"step-{done:08d}.png"
            self._grid.draw(weights, picture)
            self._job.announce_picture(picture)

    def _save(self, done: int) -> None:
        self._meter.settle()
        assert self._job.checkpoints is not None
        main, rank = self._accelerator.is_main_process, self._accelerator.process_index
        if main:
            checkpoints.begin(self._job.checkpoints, done)
        dist.barrier()
        partial = self._job.checkpoints / (checkpoints.checkpoint_name(done) + checkpoints.PARTIAL)
        written: list[Any] = [None] * self._accelerator.num_processes
        try:
            mine: Any = checkpoints.write_shard(partial, rank, self._shards.state())
        except TrainingError as error:
            mine = error
        dist.all_gather_object(written, mine)
        for entry in written:
            if isinstance(entry, TrainingError):
                raise entry  # everywhere the same, and not the others' loss of a peer
        if main:
            manifest = Manifest(
                run=self._job.identity,
                step=done,
                updates=self._shards.updates,
                loss_scale=self._shards.loss_scale(),
                meter=self._meter.state(),
                files=dict(written),
            )
            checkpoints.finish(partial, manifest, self._job.curves.read_bytes(), self._settings.keep_checkpoints)
        dist.barrier()
