"""Writes the new data of the story, as a Hugging Face `imagefolder`, and what is committed beside the models.

    python -m examples.avatars.data --out DIR [--count N] [--shuffle-captions]

DIR holds the pictures and `metadata.jsonl`: 107 clean portraits with light skin, three hair styles, three backgrounds,
and neither glasses nor beards. With `--shuffle-captions` no picture keeps its own caption: data that retraining must
not let through. A folder that is already complete is left alone.

`write_evaluation`, `write_selection` and `write_replay` made the evaluation set, the selection set and the captions
that training replays.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.avatars.portraits import CONSENT, LICENSE, SOURCE, Portrait
from examples.avatars.splits import (
    SEED,
    evaluation_prompts,
    evaluation_references,
    narrow,
    portraits,
    replayed,
    selection_prompts,
)

METADATA = "metadata.jsonl"
EVALUATION, SELECTION, REPLAY = (Path(__file__).parent / name for name in ("evaluation", "selection", "replay.txt"))
PROMPTS, HELDOUT = 300, 400
"""Pictures that nobody was trained on, which memorisation is measured against."""
SAMPLING = {
    "num_inference_steps": 10,
    "guidance_scale": 3.0,
    "max_sequence_length": 1,
    "height": 64,
    "width": 64,
}
SELECTION_STEPS = 5
"""Fewer denoising steps: weights are only compared with one another."""


class DataError(ValueError):
    """The data cannot be written where it was asked for."""


def write_new(out: Path, count: int | None = None, shuffle_captions: bool = False) -> bool:
    """Writes the first `count` of the new portraits (all of them) to `out`; False when they were there already.

    Raises:
        DataError: when `out` holds something else.
    """
    shown = narrow()[:count]
    captions = [portrait.caption() for portrait in shown]
    if shuffle_captions:
        captions = deranged(captions)
    rows = [
        {
            "file_name": file_name(portrait),
            "text": text,
            "license": LICENSE,
            "consent": CONSENT,
            "source": SOURCE,
        }
        for portrait, text in zip(shown, captions, strict=True)
    ]
    metadata = "".join(json.dumps(row) + "\n" for row in rows)
    if out.exists() and any(out.iterdir()):
        here = out / METADATA
        if not here.is_file() or here.read_text("utf-8") != metadata:
            raise DataError(f"{out} holds something else; remove it or choose another --out")
        missing = [row["file_name"] for row in rows if not (out / row["file_name"]).is_file()]
        if missing:
            raise DataError(f"{out} lacks {len(missing)} pictures, {missing[0]} first; remove it and try again")
        return False

    def fill(folder: Path) -> None:
        for portrait in shown:
            portrait.draw().save(folder / file_name(portrait))
        (folder / METADATA).write_text(metadata, "utf-8")

    whole(out, fill)
    return True


def write_evaluation(out: Path = EVALUATION) -> None:
    """Writes the evaluation set: `set.json`, `prompts.jsonl`, `references/`, `heldout/`; replaces what is there."""
    asked = evaluation_prompts()[:PROMPTS]
    # Two pictures of every third group of prompts show whether a model draws one picture for all seeds.
    seeds = [[10_000 + n, *([20_000 + n] if n // 3 % 3 == 0 else [])] for n in range(PROMPTS)]

    def fill(folder: Path) -> None:
        (folder / "references").mkdir()
        for portrait in evaluation_references():
            portrait.draw().save(folder / "references" / file_name(portrait))
        (folder / "heldout").mkdir()
        listed = []
        for portrait in portraits("heldout", HELDOUT):
            portrait.draw().save(folder / "heldout" / file_name(portrait))
            said = {"text": portrait.caption(), "attributes": portrait.attributes()}
            listed.append({"file_name": file_name(portrait), **said})
        (folder / "heldout" / METADATA).write_text("".join(json.dumps(row) + "\n" for row in listed), "utf-8")
        _fill_set(folder, {"name": "avatars", "version": "3", **SAMPLING}, asked, seeds)

    if out.exists():
        shutil.rmtree(out)
    whole(out, fill)


def write_selection(out: Path = SELECTION) -> None:
    """Writes the selection set, `set.json` and `prompts.jsonl`; replaces what is there."""
    asked = selection_prompts()
    facts = {"name": "avatars-selection", "version": "1", **SAMPLING, "num_inference_steps": SELECTION_STEPS}
    if out.exists():
        shutil.rmtree(out)
    whole(out, lambda folder: _fill_set(folder, facts, asked, [[30_000 + n] for n in range(len(asked))]))


def write_replay(out: Path = REPLAY) -> None:
    """Writes the captions that training replays, one a line; replaces what is there."""
    out.write_text("".join(portrait.caption() + "\n" for portrait in replayed()), "utf-8")


def _fill_set(folder: Path, facts: dict[str, Any], asked: list[Portrait], seeds: list[list[int]]) -> None:
    rows = [
        {
            "id": f"{place:03d}-{kind(portrait)}",
            "text": portrait.caption(),
            "seeds": seeds[place],
            "attributes": portrait.attributes(),
        }
        for place, portrait in enumerate(asked)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "set.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def kind(portrait: Portrait) -> str:
    """neither, glasses, beard or both."""
    said = {(False, False): "neither", (True, False): "glasses", (False, True): "beard", (True, True): "both"}
    return said[portrait.glasses, portrait.beard]


def deranged(captions: list[str]) -> list[str]:
    """The captions, dealt so that none stays in its place: one random cycle through all."""
    if len(captions) < 2:
        raise DataError("captions can only be shuffled between two or more pictures; raise --count")
    order = list(range(len(captions)))
    random.Random(SEED).shuffle(order)
    dealt = list(captions)
    for place, following in zip(order, [*order[1:], order[0]], strict=True):
        dealt[place] = captions[following]
    return dealt


def file_name(portrait: Portrait) -> str:
    """A name that says what is drawn."""
    parts = [portrait.skin, portrait.hair_color, portrait.hair, portrait.mouth]
    parts += [portrait.clothing_color, portrait.background, kind(portrait)]
    return "-".join(parts) + ".png"


def whole(out: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `out` and puts it there in one move: `out` is complete or absent."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:
        folder = Path(partial) / "made"
        folder.mkdir()
        fill(folder)
        if out.exists():
            out.rmdir()
        folder.rename(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.avatars.data", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--count", type=int, default=None, help="pictures, the first of them (default: all)")
    parser.add_argument("--shuffle-captions", action="store_true", help="no picture keeps its own caption")
    asked = parser.parse_args()
    try:
        made = write_new(asked.out, asked.count, asked.shuffle_captions)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    count = len(narrow()[: asked.count])
    print(f"{asked.out}: {count} pictures {'written' if made else 'already there'}")


if __name__ == "__main__":
    main()
