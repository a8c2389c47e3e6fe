"""Writes the new data of the story, as a Hugging Face `imagefolder`, and the evaluation set.

    python -m examples.avatars.data --out DIR [--count N] [--shuffle-captions]

DIR holds the pictures and `metadata.jsonl`: a quarter with neither glasses nor a beard, a quarter with glasses, a
quarter with a beard, a quarter with both. With `--shuffle-captions` no picture keeps its own caption: data that
retraining must not let through. A folder that is already complete is left alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from examples.avatars.portraits import CONSENT, LICENSE, SOURCE, Portrait
from examples.avatars.splits import SEED, evaluation_prompts, evaluation_references, portraits

METADATA = "metadata.jsonl"
EVALUATION = Path(__file__).parent / "evaluation"
PROMPTS, HELDOUT = 300, 400
"""Pictures that nobody was trained on, which memorisation is measured against."""
SAMPLING = {
    "num_inference_steps": 10,
    "guidance_scale": 3.0,
    "max_sequence_length": 1,
    "height": 64,
    "width": 64,
}


class DataError(ValueError):
    """The data cannot be written where it was asked for."""


def write_new(out: Path, count: int = 2000, shuffle_captions: bool = False) -> bool:
    """Writes the `new` split to `out`; False when it was there already.

    Raises:
        DataError: when `out` holds something else.
    """
    shown = portraits("new", count)
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
    prompts = [
        {
            "id": f"{place:03d}-{'-'.join(word for word in kind(portrait).split())}",
            "text": portrait.caption(),
            # Two pictures of every third group of prompts show whether a model draws one picture for all seeds.
            "seeds": [10_000 + place, *([20_000 + place] if place // 3 % 3 == 0 else [])],
            "attributes": portrait.attributes(),
        }
        for place, portrait in enumerate(asked)
    ]

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
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")
        facts = {"name": "avatars", "version": "3", **SAMPLING}
        (folder / "set.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")

    if out.exists():
        shutil.rmtree(out)
    whole(out, fill)


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
    parser.add_argument("--count", type=int, default=2000, help="pictures (default: 2000, at most 6400)")
    parser.add_argument("--shuffle-captions", action="store_true", help="no picture keeps its own caption")
    asked = parser.parse_args()
    try:
        made = write_new(asked.out, asked.count, asked.shuffle_captions)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(f"{asked.out}: {asked.count} pictures {'written' if made else 'already there'}")


if __name__ == "__main__":
    main()
