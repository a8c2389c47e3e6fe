"""A channel in a folder, its keys, and champions that no ledger decided."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer

from lineage.channel.champion import Champion, File
from lineage.channel.client import Channel
from lineage.channel.publisher import Publisher, init
from lineage.digests import digest_bytes, digest_json
from lineage.faults import FAULT_VARIABLE
from lineage.signing import ROLES, SCHEME, make_keys, open_signer

MODEL = "portraits"
DOCUMENTS = {"verdict.dsse.json": b'{"payload": "verdict"}', "model.sig": b'{"payload": "signature"}'}
DAY = timedelta(days=1)


def tree(files: tuple[File, ...]) -> str:
    return f"tree-{digest_json([[file.name, file.digest] for file in files])}"


def champion(version: str = "1", model: str = MODEL, entry: int = 0, **changes: Any) -> Champion:
    """Version ``version`` of ``model``, champion since ledger entry ``entry``."""
    names = ("MLmodel", "artifacts/weights/weights.safetensors")
    files = tuple(File(name=n, size=8, digest=digest_bytes(f"{model} {version} {n}".encode())) for n in names)
    entry = entry or 10 * int(version or 0)
    fields: dict[str, Any] = {
        "model": model,
        "version": version,
        "weights": tree(files[1:]),
        "folder": tree(files),
        "place": f"s3://models/{model}/{version}",
        "files": files,
        "verdict": digest_bytes(DOCUMENTS["verdict.dsse.json"]),
        "decision": "promote",
        "figures": ({"axis": "alignment", "candidate": 0.61, "incumbent": 0.5},),
        "ledger": "ledger-1",
        "entry": entry,
        "head": digest_bytes(f"entry {entry}".encode()),
        "size": entry + 1,
        "time": "2026-11-26T10:00:00.000+00:00",
    }
    return Champion(**(fields | changes))


def nobody(entry: int, *withdrawn: str) -> Champion:
    """What is said of a model whose champion was withdrawn."""
    fields: dict[str, Any] = {"weights": None, "folder": None, "place": "", "files": (), "verdict": None}
    return champion("", entry=entry, withdrawn=withdrawn, **fields)


@dataclass(frozen=True)
class World:
    """A folder with keys, a channel, and readers' states."""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder / "channel")

    def key(self, role: str) -> Signer:
        return open_signer(f"{SCHEME}{self.folder / 'keys' / f'{role}.pem'}")

    @cached_property
    def root(self) -> bytes:
        """The channel's first root; makes the channel."""
        return init(self.place, make_keys(self.folder / "keys", ROLES), self.key("root"))

    def publisher(self, life: timedelta = DAY, place: str = "", **keys: Any) -> Publisher:
        keys = {"promotion": self.key("promotion"), "witness": self.key("witness")} | keys
        return Publisher(place or self.place, life=life, **keys)

    def publish(self, said: Champion, life: timedelta = DAY) -> list[str]:
        assert self.root
        return self.publisher(life).publish(said, DOCUMENTS if said.version else {})

    def channel(self, url: str = "", reader: str = "reader") -> Channel:
        return Channel(self.root, url or self.place, self.folder / "states" / reader)

    def version(self, url: str = "", reader: str = "reader", model: str = MODEL) -> str:
        """The champion's version, read by a process that begins now."""
        channel = self.channel(url, reader)
        channel.refresh()
        return channel.champion(model).version

    def copied(self, name: str) -> Path:
        """A copy of the channel as it is now, for somebody to serve."""
        return Path(shutil.copytree(self.place, self.folder / name))

    def metadata(self, pattern: str, where: str | Path = "") -> list[Path]:
        """Files of metadata, by their numbers."""
        found = (Path(where or self.place) / "metadata").glob(pattern)
        return sorted(found, key=lambda path: int(path.name.partition(".")[0]))


def new_key() -> Signer:
    return CryptoSigner.generate_ecdsa()


def publish_many(folder: Path, model: str, times: int) -> None:
    """For a process of its own."""
    for number in range(1, times + 1):
        World(folder).publisher().publish(champion(str(number), model), DOCUMENTS)


def publish_until(folder: Path, version: str, fault: str) -> None:
    """For a process of its own, which kills itself at ``fault``."""
    os.environ[FAULT_VARIABLE] = fault
    World(folder).publisher(mark=folder / "mark").publish(champion(version), {"verdict.dsse.json": version.encode()})


def started(target: Any, *given: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.channel.worlds"])
    process = context.Process(target=target, args=given)
    process.start()
    return process


def was_killed(process: Any) -> bool:
    process.join(60)
    return bool(process.exitcode == -signal.SIGKILL)
