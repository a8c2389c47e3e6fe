"""What a snapshot keeps for the next one: digests of files that have not changed since, and itself if nothing has.

A file is known by its place and its stamp. What lies here is checked by digest before it is used; a digest that is
wrong nevertheless would be found by validation, which reads every image.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from lineage.digests import digest_bytes, digest_file, hex_of

FILES, INDEX = "files.parquet", "index.json"


class Measured(NamedTuple):
    """What was found when an image was read."""

    stamp: str
    sha256: str
    bytes: int
    phash: str | None


class Kept:
    """The folder of one source among the unfinished work of a pipeline; without ``state`` nothing is kept."""

    def __init__(self, state: Path | None, source: str) -> None:
        name = hex_of(digest_bytes(source.encode()))[:16]
        self.folder = state / "data" / name if state else None
        self.files: dict[str, Measured] | None = None

    def snapshot(self, fingerprint: str, target: Path) -> bool:
        """Put the last snapshot into ``target``, if it was taken of the same and is whole."""
        if not self.folder or not fingerprint:
            return False
        try:
            index = json.loads((self.folder / "snapshot" / INDEX).read_bytes())
            if index["fingerprint"] != fingerprint:
                return False
            target.mkdir(parents=True)
            for name, digest in index["files"].items():
                shutil.copyfile(self.folder / "snapshot" / name, target / name)
                if digest_file(target / name) != digest:
                    raise ValueError(name)
        except (OSError, ValueError, LookupError, TypeError):
            shutil.rmtree(target, ignore_errors=True)
            return False
        return True

    def keep_snapshot(self, fingerprint: str, folder: Path) -> None:
        """Keep a snapshot for the case that nothing changes."""
        if not self.folder or not fingerprint:
            return
        partial, kept = self.folder / f"snapshot.{os.getpid()}", self.folder / "snapshot"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        files = {path.name: digest_file(path) for path in folder.iterdir()}
        (partial / INDEX).write_text(json.dumps({"fingerprint": fingerprint, "files": files}))
        shutil.rmtree(kept, ignore_errors=True)
        partial.replace(kept)

    def known(self, uri: str, stamp: str) -> Measured | None:
        """What was found the last time, if the image at ``uri`` is still the same."""
        if self.files is None:
            self.files = self._read_files()
        found = self.files.get(uri)
        return found if found and stamp and found.stamp == stamp else None

    def keep_files(self, read: dict[str, Measured]) -> None:
        """Add what was read this time; also where the snapshot fails later, so that no file is read again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        lasting = {uri: measured for uri, measured in read.items() if measured.stamp}
        if not self.folder or not lasting:
            return
        files = {**(self.files or {}), **lasting}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{FILES}.{os.getpid()}"
        columns = zip(*files.values(), strict=True)
        table = {"uri": list(files), **dict(zip(Measured._fields, map(list, columns), strict=True))}
        pq.write_table(pa.table(table), partial)
        digest = digest_file(partial)
        partial.replace(self.folder / FILES)
        (self.folder / f"{FILES}.digest").write_text(digest)

    def _read_files(self) -> dict[str, Measured]:
        if not self.folder or not (self.folder / FILES).is_file():
            return {}
        import pyarrow.parquet as pq

        try:
            if digest_file(self.folder / FILES) != (self.folder / f"{FILES}.digest").read_text():
                return {}
        except OSError:
            return {}
        columns = pq.read_table(self.folder / FILES).to_pydict()
        measured = map(Measured, *(columns[name] for name in Measured._fields))
        return dict(zip(columns["uri"], measured, strict=True))
