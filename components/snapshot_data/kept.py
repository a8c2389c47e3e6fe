"""What a snapshot keeps for the next one: digests of files that have not changed since, and itself if nothing has.

A file is known by its place and its stamp. What lies here is checked by digest before it is used; a digest that is
wrong nevertheless would be found by validation, which reads every image.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lineage.digests import digest_bytes, digest_file, hex_of
from lineage.files import whole_folder

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

    def take(self, name: str, key: str, target: Path) -> bool:
        """Copy what was kept as ``name`` into the empty folder ``target``, if it was kept for ``key`` and is whole."""
        if not self.folder or not key:
            return False
        try:
            index = json.loads((self.folder / name / INDEX).read_bytes())
            if index["key"] != key:
                return False
            for file, digest in index["files"].items():
                if digest_file(Path(shutil.copyfile(self.folder / name / file, target / file))) != digest:
                    raise ValueError(file)
        except (OSError, ValueError, LookupError, TypeError):
            for copied in target.iterdir():
                copied.unlink()
            return False
        return True

    def keep(self, name: str, key: str, folder: Path) -> None:
        """Keep the files of ``folder`` as ``name``, for who asks with ``key``."""
        if not self.folder or not key:
            return
        with whole_folder(self.folder / name) as kept:
            files = {path.name: digest_file(Path(shutil.copy(path, kept))) for path in folder.iterdir()}
            (kept / INDEX).write_text(json.dumps({"key": key, "files": files}))

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
        rows = [{"uri": uri, **measured._asdict()} for uri, measured in {**(self.files or {}), **lasting}.items()]
        with TemporaryDirectory() as folder:
            pq.write_table(pa.Table.from_pylist(rows), Path(folder) / FILES)
            self.keep("files", "files", Path(folder))

    def _read_files(self) -> dict[str, Measured]:
        import pyarrow.parquet as pq

        with TemporaryDirectory() as folder:
            if not self.take("files", "files", Path(folder)):
                return {}
            rows = pq.read_table(Path(folder) / FILES).to_pylist()
        return {row.pop("uri"): Measured(**row) for row in rows}
