"""`python -m examples.avatars.train [part ...]`: trains what is missing and puts the models together."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from examples.avatars.train import bundle, scorers, spoiled, teacher, text, transformer, vae

MODELS = Path(__file__).parents[1] / "models"
PARTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "vae": (vae.train, "vae/config.json"),
    "text": (text.train, "text/text_encoder_2/config.json"),
    "clean": (transformer.train, "clean/config.json"),
    "transformer": (spoiled.train, "transformer/config.json"),
    "teacher": (teacher.train, "teacher/config.json"),
    "scorers": (scorers.train, "scorers/aesthetics.safetensors"),
}
"""Each part, and the file that says it is there."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.avatars.train", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"train these again: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "triptych-avatars")
    parser.add_argument("--out", type=Path, default=MODELS)
    asked = parser.parse_args()
    unknown = set(asked.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    for name, (train, sign) in PARTS.items():
        if name in asked.parts:
            shutil.rmtree(asked.work / name, ignore_errors=True)
        if name in asked.parts or (not asked.parts and not (asked.work / sign).exists()):
            train(asked.work)
    missing = [name for name, (_, sign) in PARTS.items() if not (asked.work / sign).exists()]
    if missing:
        print(f"not put together yet: {', '.join(missing)} missing in {asked.work}")
    else:
        bundle.assemble(asked.work, asked.out)


if __name__ == "__main__":
    main()
