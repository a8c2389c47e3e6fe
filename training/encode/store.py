"""Rows of features on disk, each under a key that says what it was computed from. Imports nothing heavy.

    <folder>/<name>.safetensors    a segment: some rows, those of equal shapes stacked as ``0.mean`` …
    <folder>/<name>.stamp          size and time that the segment had when its rows were last checked

A folder is of one part under one recipe (`training.encode.info.part_folder`); a row's key names its picture and size,
or its text. A segment's header holds, for each stack, the key and the digest of each row. Segments are written whole or
not at all and never changed: what is new goes into new ones. The digest of many rows is that of their digests in order,
in whichever segments they lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineage.digests import digest_bytes
from training.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

SEGMENT_ROWS = 1024
SEGMENT_BYTES = 256 * 2**20
"""Most rows, and about the most bytes, of a segment: what a kill can cost."""
ABANDONED = 24 * 3600
"""Seconds after which half a segment is nobody's any more."""


class Place(NamedTuple):
    """Where a row lies."""

    segment: Path
    stack: int
    row: int
    digest: str
    """SHA-256 of the row, in hexadecimal."""


def find_rows(folder: Path) -> dict[str, Place]:
    """The rows in a part's folder, by key; of equal keys the one in the first segment by name."""
    found: dict[str, Place] = {}
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        found |= _places(path, _opened(path)[1])
    return found


def digest_rows(places: Iterable[Place]) -> str:
    """The digest of rows in this order."""
    return digest_bytes(b"".join(bytes.fromhex(place.digest) for place in places))


def check_segment(path: Path) -> None:
    """Hash the rows of a segment.

    Raises:
        TrainingError: it cannot be read, or a row is not what its digest says.
    """
    opened, listed = _opened(path)
    for stack, rows in enumerate(listed):
        prefix = f"{stack}."
        tensors = {n.removeprefix(prefix): opened.get_tensor(n) for n in opened.keys() if n.startswith(prefix)}  # noqa: SIM118 (not a mapping)
        for number, digest in enumerate(rows[1]):
            if _digest({name: tensor[number] for name, tensor in tensors.items()}) != digest:
                raise TrainingError(f"{path} is not what was encoded: row {number} of {stack} has another digest")


def _opened(path: Path) -> tuple[Any, list[tuple[list[str], list[str]]]]:
    """A segment, and by stack the keys and the digests of its rows."""
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="np")
        return opened, json.loads(opened.metadata()["rows"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not what was encoded: it has no header ({error})") from error


def _places(path: Path, listed: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, Place]:
    return {
        key: Place(path, stack, number, digest)
        for stack, (keys, digests) in enumerate(listed)
        for number, (key, digest) in enumerate(zip(keys, digests, strict=True))
    }


def _digest(row: Mapping[str, NDArray[Any]]) -> str:
    """Of a row: name, format, shape and bytes of each tensor, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(row.items()):
        digest.update(f"{name} {value.dtype.str} {list(value.shape)}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class PartStore:
    """The rows of one part, under one recipe, as they are taken up and added to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in folder.glob("*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
        for path in folder.glob("*.safetensors"):
            _check_once(path)
        self.rows = find_rows(folder)
        self._waiting: list[tuple[str, dict[str, NDArray[Any]]]] = []
        self._bytes = 0

    def add(self, key: str, row: Mapping[str, Tensor]) -> None:
        """Take a row; it is on the disk with the segment that it fills, or after `flush`."""
        self._waiting.append((key, {name: tensor.contiguous().numpy() for name, tensor in row.items()}))
        self._bytes += sum(value.nbytes for value in self._waiting[-1][1].values())
        if len(self._waiting) >= SEGMENT_ROWS or self._bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one segment."""
        from safetensors.numpy import save_file

        if not self._waiting:
            return
        stacks: dict[Any, list[tuple[str, dict[str, NDArray[Any]]]]] = {}
        for key, row in self._waiting:
            shapes = tuple((name, value.dtype.str, value.shape) for name, value in sorted(row.items()))
            stacks.setdefault(shapes, []).append((key, row))
        tensors: dict[str, NDArray[Any]] = {}
        listed = []
        for number, rows in enumerate(stacks.values()):
            listed.append(([key for key, _ in rows], [_digest(row) for _, row in rows]))
            tensors |= {f"{number}.{name}": np.stack([row[name] for _, row in rows]) for name in sorted(rows[0][1])}
        header = json.dumps(listed, separators=(",", ":"))
        path = self.folder / f"{hashlib.sha256(header.encode()).hexdigest()[:16]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(tensors, partial, {"rows": header})
        _note(path).write_text(_stamp(path), "utf-8")
        self.rows |= _places(path, listed)
        self._waiting, self._bytes = [], 0

    def link(self, keys: Iterable[str], folder: Path) -> None:
        """Bring the segments that hold ``keys`` to ``folder``, by hard links where these are possible."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sorted({self.rows[key].segment for key in keys}):
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Another name to write ``path`` under: after the block it is on the disk whole; after an error, not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_once(path: Path) -> None:
    """Check a segment that is not as it was when it was last checked; one that is damaged is removed."""
    if _note(path).is_file() and _note(path).read_text("utf-8") == _stamp(path):
        return
    try:
        check_segment(path)
        _note(path).write_text(_stamp(path), "utf-8")
    except TrainingError as error:
        print(f"{error}; its rows are encoded again", flush=True)
        path.unlink()


def _note(path: Path) -> Path:
    return path.with_suffix(".stamp")


def _stamp(path: Path) -> str:
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"


def links(cache: Path, folder: Path) -> bool:
    """Whether files in ``cache`` can have hard links in ``folder``: elsewhere each segment takes room twice."""
    with tempfile.NamedTemporaryFile(dir=cache) as probe:
        link = folder / Path(probe.name).name
        try:
            os.link(probe.name, link)
        except OSError:
            return False
        link.unlink()
        return True


class Rows:
    """The rows of one part that ``keys`` name, memory-mapped: only what is read takes memory."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        found = find_rows(folder)
        self._places = [found[key] for key in keys]
        self._segments: dict[Path, dict[str, Tensor]] = {}

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Every tensor of the row of key ``number``."""
        place = self._places[number]
        stack = f"{place.stack}."
        tensors = self._tensors(place.segment)
        return {n.removeprefix(stack): t[place.row] for n, t in tensors.items() if n.startswith(stack)}

    def gather(self, name: str, numbers: Iterable[int]) -> Tensor:
        """Tensor ``name`` of some rows of equal shape, stacked."""
        import torch

        runs = groupby((self._places[number] for number in numbers), key=lambda place: (place.segment, place.stack))
        return torch.cat(
            [self._tensors(s)[f"{stack}.{name}"][[place.row for place in run]] for (s, stack), run in runs]
        )

    def whole(self, name: str) -> Tensor:
        """Tensor ``name`` of all rows, stacked."""
        return self.gather(name, range(len(self._places)))

    def _tensors(self, segment: Path) -> dict[str, Tensor]:
        if segment not in self._segments:
            from safetensors.torch import load_file

            self._segments[segment] = load_file(segment)
        return self._segments[segment]
