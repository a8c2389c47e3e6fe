"""The captions that training replays: from a text file, or from the metadata of an earlier snapshot."""

from __future__ import annotations

import json
from pathlib import Path

from lineage.pictures import manifest_rows
from training.errors import TrainingError


def replayed_captions(path: Path) -> list[str]:
    """The distinct captions in ``path``, in its order: the lines of a text file, or ``text`` of each row where it is
    called ``*.jsonl`` or, as a snapshot's manifest, ``*.parquet``.

    Raises:
        TrainingError: it cannot be read, is malformed, or holds no caption.
    """
    try:
        if path.suffix == ".parquet":
            found = [row["text"] for row in manifest_rows(path, ["text"])]
        else:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
            found = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"training.replay.captions, {path}, cannot be read: {error!r}; give a text file with a caption a line, a "
            "metadata.jsonl whose rows have a text, or the manifest.parquet of a snapshot"
        ) from error
    if not found or not all(isinstance(caption, str) and caption for caption in found):
        raise TrainingError(f"training.replay.captions, {path}, has a row without a caption, or none at all")
    return list(dict.fromkeys(found))
