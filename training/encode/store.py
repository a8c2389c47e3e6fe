"""Rows of features on disk, each under a key that says what it was computed from. Imports nothing heavy.

    <folder>/<part>-<recipe>/<name>.safetensors    a segment: some rows, those of equal shapes stacked as ``0.mean`` …
    <folder>/<part>-<recipe>/<name>.stamp          size and time that the segment had when its rows were last checked

A part's recipe names the code, packages, model and settings that decide its rows; a row's key names its picture and
size, or its text. A segment's header holds, for each stack, the key and the digest of each row. Segments are written
whole or not at all and never changed: what is new goes into new ones. The digest of many rows is that of their
digests in order, in whichever segments they lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    for path in sorted(folder.glob("*.safetensors")):
        for stack, rows in enumerate(_header(path)[0]):
            for number, (key, digest) in enumerate(rows):
                found.setdefault(key, Place(path, stack, number, digest))
    return found


def digest_rows(places: Iterable[Place]) -> str:
    """The digest of rows in this order."""
    return digest_bytes(b"".join(bytes.fromhex(place.digest) for place in places))


def check_segment(path: Path) -> None:
    """Hash the rows of a segment.

    Raises:
        TrainingError: it cannot be read, or a row is not what its digest says.
    """
    stacks, tensors, start = _header(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for stack, rows in enumerate(stacks):
            own = {name.partition(".")[2]: t for name, t in tensors.items() if name.partition(".")[0] == str(stack)}
            for number, (_, digest) in enumerate(rows):
                parts = {}
                for name, tensor in own.items():
                    first, end = tensor["data_offsets"]
                    size = (end - first) // len(rows)
                    place = start + first + number * size
                    parts[name] = (tensor["dtype"], tensor["shape"][1:], content[place : place + size])
                if _digest(parts) != digest:
                    raise TrainingError(f"{path} is not what was encoded: row {number} of {stack} has another digest")


def _header(path: Path) -> tuple[list[list[tuple[str, str]]], dict[str, Any], int]:
    """Keys and digests by stack, tensors by name, and where the tensors begin."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        rows = json.loads(header.pop("__metadata__")["rows"])
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} is not what was encoded: it has no header ({error})") from error
    return rows, header, 8 + length


def _digest(parts: Mapping[str, tuple[str, Sequence[int], bytes]]) -> str:
    """Of a row: name, format, shape and bytes of each tensor, by name."""
    digest = hashlib.sha256()
    for name, (dtype, shape, content) in sorted(parts.items()):
        digest.update(f"{name} {dtype} {list(shape)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


class PartStore:
    """The rows of one part, under one recipe, as they are taken up and added to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in folder.glob("*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
        for path in folder.glob("*.safetensors"):
            _check_stamp(path)
        self.rows = find_rows(folder)
        self._waiting: list[tuple[str, dict[str, Tensor]]] = []
        self._bytes = 0

    def add(self, key: str, row: dict[str, Tensor]) -> None:
        """Take a row; it is on the disk with the segment that it fills, or after `flush`."""
        self._waiting.append((key, row))
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in row.values())
        if len(self._waiting) >= SEGMENT_ROWS or self._bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one segment."""
        import torch
        from safetensors.torch import save_file

        if not self._waiting:
            return
        stacks: dict[tuple[Any, ...], list[tuple[str, dict[str, Tensor]]]] = {}
        for key, row in self._waiting:
            shapes = tuple((name, tensor.dtype, tensor.shape) for name, tensor in sorted(row.items()))
            stacks.setdefault(shapes, []).append((key, row))
        tensors, listed = {}, []
        for number, rows in enumerate(stacks.values()):
            listed.append([(key, _digest({n: _plain(t) for n, t in row.items()})) for key, row in rows])
            for name in rows[0][1]:
                tensors[f"{number}.{name}"] = torch.stack([row[name] for _, row in rows])
        header = json.dumps(listed, separators=(",", ":"))
        path = self.folder / f"{hashlib.sha256(header.encode()).hexdigest()[:16]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(dict(sorted(tensors.items())), partial, {"rows": header})
        _stamp(path)
        for stack, rows_of_stack in enumerate(listed):
            self.rows |= {key: Place(path, stack, row, digest) for row, (key, digest) in enumerate(rows_of_stack)}
        self._waiting, self._bytes = [], 0

    def link(self, keys: Iterable[str], folder: Path) -> None:
        """Bring the segments that hold ``keys`` to ``folder``, by hard links where these are possible."""
        if folder == self.folder:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sorted({self.rows[key].segment for key in keys}):
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def _plain(tensor: Tensor) -> tuple[str, Sequence[int], bytes]:
    """Format, shape and bytes of a tensor, as safetensors writes them."""
    array = tensor.detach().cpu().contiguous().numpy()
    kind = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}[array.dtype.kind]
    return kind if kind == "BOOL" else f"{kind}{8 * array.itemsize}", array.shape, array.tobytes()


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


def _check_stamp(path: Path) -> None:
    """Check a segment that is not as it was when it was last checked; one that is damaged is removed."""
    note = path.with_suffix(".stamp")
    if note.is_file() and note.read_text("utf-8") == _stamp_of(path):
        return
    try:
        check_segment(path)
    except TrainingError as error:
        print(f"{error}; its rows are encoded again", flush=True)
        path.unlink()
        note.unlink(missing_ok=True)
        return
    _stamp(path)


def _stamp(path: Path) -> None:
    path.with_suffix(".stamp").write_text(_stamp_of(path), "utf-8")


def _stamp_of(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


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
        self._open: dict[Path, dict[str, Tensor]] = {}

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Every tensor of the row of key ``number``."""
        place = self._places[number]
        if place.segment not in self._open:
            from safetensors.torch import load_file

            self._open[place.segment] = load_file(place.segment)
        stack = f"{place.stack}."
        tensors = self._open[place.segment]
        return {n.removeprefix(stack): t[place.row] for n, t in tensors.items() if n.startswith(stack)}

    def gather(self, name: str, numbers: Iterable[int]) -> Tensor:
        """Tensor ``name`` of some rows, stacked."""
        import torch

        return torch.stack([self[number][name] for number in numbers])

    def whole(self, name: str) -> Tensor:
        """Tensor ``name`` of all rows, stacked."""
        return self.gather(name, range(len(self._places)))
