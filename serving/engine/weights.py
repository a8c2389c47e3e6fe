"""The digest of a loaded bundle, with its weights taken from memory: proof that what was verified is what draws."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import _TYPES
from torch import Tensor

from lineage.digests import PREFIX, digest_file, digest_tree
from serving.backend import UnusableError

_LENGTH = 8
"""Bytes before a safetensors header that give its length, little-endian.
https://github.com/huggingface/safetensors#format"""


@dataclass(frozen=True)
class _File:
    """A safetensors file without its tensors."""

    name: str
    part: str
    start: bytes
    """Length and header, as they lie in the file."""
    tensors: list[tuple[str, str]]
    """Name and number format, in the order of the data."""


class Weights:
    """Which tensors in memory came from which file of the bundle at ``folder``, which ``pipeline`` was loaded from.

    Raises:
        UnusableError: a tensor of the model is in no file: diffusers made it up.
    """

    def __init__(self, folder: Path, pipeline: Any) -> None:
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        self._folder, self._parts = folder, parts
        self._others: dict[str, str] = {}
        self._files: list[_File] = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, part = path.relative_to(folder).as_posix(), path.parent.relative_to(folder).as_posix()
            if path.suffix == ".safetensors" and part in parts:
                self._files.append(_read(path, name, part))
            else:
                self._others[name] = digest_file(path)
        self._refuse_made_up(folder)

    def _refuse_made_up(self, folder: Path) -> None:
        """Tied tensors lie in a file once, so it is their place in memory that must be some file's tensor's."""
        for part, tensors in self._memory().items():
            names = [name for file in self._files if file.part == part for name, _ in file.tensors]
            found = {tensor.data_ptr() for name in names if (tensor := _find(tensors, name)) is not None}
            absent = [name for name, tensor in tensors.items() if tensor.numel() and tensor.data_ptr() not in found]
            if absent:
                raise UnusableError(f"the weights at {folder / part} lack {', '.join(absent[:3])}; fetch them again")

    def _memory(self) -> dict[str, dict[str, Tensor]]:
        return {name: dict(part.state_dict()) for name, part in self._parts.items()}

    def digest(self) -> str:
        """The bundle's ``tree-sha256:``, or "" where a file's tensors are not in memory as they were in the file.

        What no model uses, such as a head for logits that nobody reads, is taken from the folder.
        """
        digests, memory = dict(self._others), self._memory()
        for file in self._files:
            hashed = hashlib.sha256(file.start)
            for name, kind in file.tensors:
                tensor = _find(memory[file.part], name)
                if tensor is None:
                    with safe_open(self._folder / file.name, framework="pt") as stream:
                        tensor = stream.get_tensor(name)
                content = _content(tensor, kind)
                if content is None:
                    return ""
                hashed.update(content)
            digests[file.name] = PREFIX + hashed.hexdigest()
        return digest_tree(digests)


def _find(tensors: dict[str, Tensor], name: str) -> Tensor | None:
    """A file's tensor in memory; transformers may have loaded it under a longer name."""
    if name in tensors:
        return tensors[name]
    ends = (f".{name}", f".{name.partition('.')[2]}")
    longer = [other for other in tensors if other.endswith(ends)]
    return tensors[longer[0]] if len(longer) == 1 else None


def _read(path: Path, name: str, part: str) -> _File:
    with path.open("rb") as stream:
        length = stream.read(_LENGTH)
        header = stream.read(int.from_bytes(length, "little"))
    entries = {n: entry for n, entry in json.loads(header).items() if n != "__metadata__"}
    ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    return _File(name, part, length + header, [(n, entry["dtype"]) for n, entry in ordered])


def _content(tensor: Tensor, kind: str) -> Any:
    """The bytes of ``tensor`` in a file's number format; None where they were lost, because memory holds fewer bits."""
    stored = tensor.detach().cpu()
    written = stored.to(_TYPES[kind]).contiguous().reshape(-1)
    if written.element_size() > stored.element_size() or not torch.equal(
        written.to(stored.dtype).view(torch.uint8), stored.contiguous().reshape(-1).view(torch.uint8)
    ):
        return None
    return written.view(torch.uint8).numpy().data
