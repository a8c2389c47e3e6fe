"""Speak the scorer contract: read a request, judge its pictures one by one, write the response.

Each scorer's folder has a link to this file: so it is written once, and belongs to every folder's digest. It needs
nothing but Python, and Pillow where a picture is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

CONTRACT = "triptych.scorer/1"
LARGEST_REQUEST = 2**26
MOST_PICTURES = 100_000
LONGEST_PROMPT = 20_000
MOST_PIXELS = 2**26
"""Of a picture; its header is asked before anything is decoded."""


class Refused(Exception):
    """Something cannot be used; the message says what and why."""


@dataclass(frozen=True)
class Asked:
    """One picture, and what it was to show."""

    file: Path
    prompt: str


def read_request(path: Path) -> list[Asked]:
    """The pictures of a request.

    Raises:
        Refused: it is too large, not as the contract says, or names a file that does not lie beside it.
    """
    if path.stat().st_size > LARGEST_REQUEST:
        raise Refused(f"the request is larger than {LARGEST_REQUEST} bytes")
    try:
        request = json.loads(path.read_bytes())
        spoken, pictures = request["contract"], request["pictures"]
        asked = [Asked(path.parent / picture["image"], picture["prompt"]) for picture in pictures]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"the request is malformed: {error!r}") from error
    if spoken != CONTRACT:
        raise Refused(f"this scorer speaks {CONTRACT}, not {spoken}")
    if len(asked) > MOST_PICTURES:
        raise Refused(f"{len(asked)} pictures are more than {MOST_PICTURES}")
    for picture, one in zip(pictures, asked, strict=True):
        if Path(picture["image"]).name != picture["image"]:
            raise Refused(f"the picture {picture['image']!r} does not lie beside the request")
        if not isinstance(one.prompt, str) or len(one.prompt) > LONGEST_PROMPT:
            raise Refused(f"the prompt of {one.file.name} is no text of at most {LONGEST_PROMPT} characters")
    return asked


def open_picture(file: Path) -> Image.Image:
    """A PNG file as RGB.

    Raises:
        Refused: it is another format, broken, or too large.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Refused(f"it has more than {MOST_PIXELS} pixels")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"it cannot be read: {error}") from error


def answer(
    request: Path,
    response: Path,
    judge: Callable[[Asked], Mapping[str, float]],
    packages: Sequence[str] = (),
    **ran: str,
) -> None:
    """Judge every picture of a request and write the response; on failure end with a message that names the picture.

    Args:
        judge: one picture -> measure -> score.
        packages: whose versions are told, beside those of Python and of the program.
        ran: what else is told about the process.
    """
    scores: dict[str, list[float]] = {}
    try:
        asked = read_request(request)
    except (Refused, OSError) as error:
        sys.exit(str(error))
    for place, one in enumerate(asked):
        try:
            judged = judge(one)
        except Exception as error:
            sys.exit(f"the picture {one.file.name} ({one.prompt[:60]!r}): {error if str(error) else repr(error)}")
        for measure, value in judged.items():
            if not math.isfinite(value):
                sys.exit(f"the picture {one.file.name} ({one.prompt[:60]!r}) has the score {value} in {measure}")
            scores.setdefault(measure, []).append(float(value))
        if any(len(values) != place + 1 for values in scores.values()):
            sys.exit(f"the picture {one.file.name} has other measures than those before it: {', '.join(judged)}")
    told = {"python": platform.python_version(), "program": _digest(Path(sys.argv[0])), **ran}
    told |= {name: version(name) for name in packages}
    response.write_text(json.dumps({"contract": CONTRACT, "scores": scores, "ran": told}))


def _digest(file: Path) -> str:
    return "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
