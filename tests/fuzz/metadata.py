"""Fuzz the readers of metadata: `python -m tests.fuzz.metadata -max_total_time=60`.

Starts from small good files of each kind and lets libFuzzer change them. Whatever the bytes are, a row is pinned or
refused with a reason, or the whole file is refused; nothing else is raised, and it takes less than ``TIMEOUT`` seconds.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["json", "components.snapshot_data"]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.snapshot_data.folder import File, Folder, RefusedError, SnapshotError
    from components.snapshot_data.metadata import TEXTS, jsonl_rows, parquet_rows, texts

TIMEOUT = 10
LONGEST = 16384
GOOD = {"file_name": "a.png", "text": "red hair", "license": "CC0-1.0", "consent": None, "split": "train"}


def one_input(content: bytes) -> None:
    """Read metadata, whatever it is: the first byte says which kind it claims to be."""
    folder, stream = Folder("file:///nowhere", {"a.png": File(1, "1")}), io.BytesIO(content[1:])
    rows = parquet_rows(stream, "metadata") if content[:1] == b"p" else jsonl_rows(stream)
    try:
        for number, said in rows:
            assert number > 0
            try:
                if isinstance(said, RefusedError):
                    raise said
                name, _ = folder.find(said.get("file_name"))
                assert name == "a.png"
                for key, text in texts(said, {}).items():
                    assert text is None or (key in (*TEXTS, "split") and text.encode() is not None)
            except RefusedError as error:
                assert error.reason
    except SnapshotError as error:
        assert str(error)


def write_seeds(folder: Path) -> None:
    """Good files of each kind."""
    line = '{"file_name": "a.png", "text": "“é” 😀", "consent": null}\n'
    (folder / "jsonl").write_bytes(b"j" + line.encode() * 3)
    for codec in ("none", "snappy"):
        stream = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([GOOD] * 3), stream, compression=codec)
        (folder / codec).write_bytes(b"p" + stream.getvalue().to_pybytes())


def main() -> None:
    """Fuzz until libFuzzer's own options (``-max_total_time``, ``-runs``) say stop."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        options = [f"-timeout={TIMEOUT}", f"-max_len={LONGEST}", "-rss_limit_mb=2048", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], folder], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
