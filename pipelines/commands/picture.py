"""From a generated picture back to what drew it: its credentials, the log of likenesses, and drawing it again."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.artifacts import read_file
from lineage.digests import LineageError
from pipelines.commands.request import Subject
from pipelines.commands.serve import SERVING
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from pipelines.audit import Report
    from serving.credentials import Credentials

NEAR = 3
"""Steps of 255 by which a pixel may differ: other processors and batches round otherwise."""


def credentials_of(what: str, subject: Subject) -> Credentials | None:
    """The credentials of the picture at ``what``; None where it is no picture of ours.

    Raises:
        CredentialsError: they do not hold.
    """
    path = Path(what)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not path.is_file():
        return None
    if find_spec("c2pa") is None:
        return None  # an auditor without the extra "serving"; the rest of the audit goes on
    from serving.credentials import MOST_PICTURE, read_credentials

    authority = subject.place.root / SERVING / "content" / "authority.crt"
    return read_credentials(read_file(path, MOST_PICTURE), authority if authority.is_file() else None)


def about_picture(what: str, found: Credentials, report: Report) -> Report:
    """The report on the weights that a picture's credentials name, as one on the picture."""
    from pipelines.audit.report import Finding

    origin, who = found.origin, f"signed by {found.signer}"
    claims = {name: str(value) for name, value in origin.model_dump().items()} | {"signed by": found.signer}
    reason = (
        f"{who}, whose authority is this work folder's" if found.trusted else f"{who}, whom nobody here vouches for"
    )
    told = [Finding(part="picture", standing="holds" if found.trusted else "not proven", subject=what, reason=reason)]
    if report.version and (origin.model, origin.version) != (
        report.version.body.model,
        report.version.body.version,
    ):
        named = f"it names version {origin.version} of {origin.model}"
        told.append(Finding(part="picture", standing="does not hold", subject=what, reason=named))
    changes = {"what": what, "kind": "generated picture", "found": f"a picture; what drew it {report.found}"}
    return report.model_copy(update={**changes, "claims": claims, "findings": (*told, *report.findings)})


def redraw(what: str, prompt: str, found: Credentials, subject: Subject) -> tuple[bool, str]:
    """Draw a picture again from the weights in the registry; whether it is the same, and how near it comes.

    Raises:
        RequestError: it is a preview.
        LineageError: the weights are not in the registry, or were changed.
    """
    import tempfile

    import numpy as np
    from PIL import Image

    from lineage.artifacts import fetch_weights
    from serving.credentials import FORMATS, encode
    from training.families.drawing import PRECISION, Drawer

    origin = found.origin
    if origin.step < origin.sampling["num_inference_steps"]:
        raise RequestError(f"{what} is a preview, after {origin.step} steps; only finished pictures are drawn again")
    with tempfile.TemporaryDirectory() as folder:
        place = f"models:/{origin.model}/{origin.version}"
        weights = fetch_weights(subject.place.database, place, origin.digest, Path(folder) / "weights")
        drawer = Drawer(weights, origin.sampling.get("precision", PRECISION))
        (again,) = drawer.draw([prompt], [origin.seed], origin.sampling)
    saved = io.BytesIO(encode(again, origin.format, origin.quality))
    with Image.open(what, formats=FORMATS) as old, Image.open(saved, formats=FORMATS) as new:
        if old.size != new.size:
            return False, f"NOT the same: {old.size} and {new.size} pixels"
        pixels = [np.asarray(one.convert("RGB"), np.int16) for one in (old, new)]
    apart = int(np.abs(pixels[0] - pixels[1]).max())
    if apart > NEAR:
        share = float((np.abs(pixels[0] - pixels[1]) > NEAR).any(axis=2).mean())
        return False, f"NOT the same: {share:.1%} of the pixels differ, by up to {apart} of 255"
    return True, "the same picture" + (f", within {apart} of 255" if apart else ", pixel by pixel")


def alike(what: str, subject: Subject) -> list[str]:
    """Pictures of the log that look like the one at ``what``, nearest first, in words.

    Raises:
        RequestError: it is no picture, or no log is kept.
    """
    from PIL import Image

    from serving.credentials import FORMATS
    from serving.likeness import alike as find

    log = subject.place.root / SERVING / "pictures.jsonl"
    if not log.is_file():
        raise RequestError(f"there is no log of pictures at {log}; a server keeps one where picture_log is set")
    try:
        with Image.open(what, formats=FORMATS) as image:
            found = find(log, image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{what} is no picture: {error}") from error
    except LookupError as error:
        raise LineageError(f"the log {log} was damaged: {error}") from error
    return [
        f"{bits} of 64 bits apart: {one['time']} version {one['origin']['version']} of {one['origin']['model']} "
        f"({one['origin']['digest']}), seed {one['origin']['seed']}, request {one['request']}"
        for bits, one in found
    ]
