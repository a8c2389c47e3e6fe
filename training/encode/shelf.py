"""Where shards are written: whole or not at all, and kept for the next try where there is a place for it.

    <cache>/latents-<key>/00000.safetensors     a finished shard
    <cache>/latents-<key>/00000.digest          its digest, written after it

The key is a digest of all that decides a shard's content: snapshot, texts, model, settings, code, packages. The
features folder gets hard links to kept shards, or copies where links are not possible. A kill costs the shard it fell
on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lineage.digests import digest_file, digest_json
from training.encode.features_info import Shard


class Shelf:
    """The shards of one part."""

    def __init__(self, folder: Path, cache: Path | None, part: str, key: Any) -> None:
        """Args:
        folder: the features folder.
        cache: a folder that outlives this step; None: nothing is kept.
        key: a JSON value of all that decides the content.
        """
        self._folder, self._part = folder, part
        self._kept = cache / f"{part}-{digest_json(key).rpartition(':')[2][:16]}" if cache else None
        self._made: dict[int, Shard] = {}
        if self._kept:
            self._kept.mkdir(parents=True, exist_ok=True)

    def take(self, number: int, rows: int) -> bool:
        """Whether shard ``number`` was finished before and still is what it was; it is in the features folder then."""
        if self._kept is None:
            return False
        place, note = self._place(number), self._kept / f"{number:05d}.digest"
        if not place.is_file() or not note.is_file() or digest_file(place) != note.read_text("utf-8"):
            return False
        self._add(number, rows, note.read_text("utf-8"))
        return True

    def write(self, number: int, rows: int, tensors: dict[str, Tensor]) -> None:
        """Write shard ``number``; equal tensors give equal bytes."""
        place = self._place(number)
        partial = place.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        digest = digest_file(partial)
        partial.replace(place)
        if self._kept:
            note = self._kept / f"{number:05d}.digest"
            note.with_suffix(".partial-digest").write_text(digest, "utf-8")
            note.with_suffix(".partial-digest").replace(note)
        self._add(number, rows, digest)

    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return [self._made[number] for number in sorted(self._made)]

    def kept_bytes(self) -> int:
        """Size of what is there from earlier tries."""
        return sum(path.stat().st_size for path in self._kept.glob("*.safetensors")) if self._kept else 0

    def _place(self, number: int) -> Path:
        return self._kept / f"{number:05d}.safetensors" if self._kept else self._folder / self._name(number)

    def _name(self, number: int) -> str:
        return f"{self._part}-{number:05d}.safetensors"

    def _add(self, number: int, rows: int, digest: str) -> None:
        if self._kept:
            target = self._folder / self._name(number)
            target.unlink(missing_ok=True)
            try:
                os.link(self._place(number), target)
            except OSError:
                shutil.copyfile(self._place(number), target)
        self._made[number] = Shard(name=self._name(number), rows=rows, digest=digest)


def links(cache: Path, folder: Path) -> bool:
    """Whether files in ``cache`` can have hard links in ``folder``: elsewhere each shard takes room twice."""
    with tempfile.NamedTemporaryFile(dir=cache) as probe:
        link = folder / Path(probe.name).name
        try:
            os.link(probe.name, link)
        except OSError:
            return False
        link.unlink()
    return True
