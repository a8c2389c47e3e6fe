"""What was asked about: a version, a run, a digest, a training image, a generated picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from lineage.artifacts import read_file
from lineage.digests import PREFIX, TREE, LineageError, digest_file
from lineage.entries import Registered
from lineage.registry import CHAMPION
from pipelines.audit.data import HELD_OUT, MOST_PICTURE, data_of
from pipelines.audit.examination import Claim, Examination, beside
from pipelines.audit.report import Picture, Use

VERSION = re.compile(r"(?:models:/)?(?:(?P<model>[^@]+)[/@])?(?P<number>\d+|champion)")
DIGEST = re.compile(rf"(?P<kind>{TREE}|{PREFIX})?(?P<hex>[0-9a-f]{{64}})")
CLAIMS = ("model", "model-digest", "prompt", "seed", "sampling")
"""What a generated PNG says of itself in its text, unsigned."""


class UnknownError(LineageError):
    """Nothing in the evidence is what was asked about."""


@dataclass(frozen=True)
class Target:
    """What was found."""

    kind: str
    found: str
    version: Registered | None = None
    run: str = ""
    uses: tuple[Use, ...] = ()
    claims: dict[str, str] = field(default_factory=dict)


def resolve(x: Examination, what: str, image: bool) -> Target:
    """Find out what ``what`` is.

    Args:
        image: it is a training image, whatever else it may be.

    Raises:
        UnknownError: nothing in the ledger, the records or the artifact store is it.
    """
    path, digest = _file(what), DIGEST.fullmatch(what)
    if not image and (named := VERSION.fullmatch(what)) and not ("/" in what and path):
        return _version(x, named["model"] or _only_model(x), named["number"])
    if not image and what in x.state.records:
        return _run(x, what)
    if digest:
        asked = [(digest["kind"] or kind) + digest["hex"] for kind in (PREFIX, TREE)]
    elif path:
        asked = [digest_file(path)]
    else:
        kinds = "an image file or its digest" if image else "a version, `champion`, a run, a digest or a file"
        raise UnknownError(f"{what[:200]!r} is not {kinds} that the ledger knows")
    # What costs more is looked into only where the rest does not know.
    for load in (_load_images,) if image else (None, _load_records, _load_images, _load_files):
        if load:
            load(x)
        if claims := [claim for one in dict.fromkeys(asked) for claim in x.values.get(one, [])]:
            return _named(x, claims, path)
    if image:
        return Target("training image", "no version was trained on it, and none refused it")
    if path and (claimed := _claimed(x, path)):
        return claimed
    raise UnknownError(f"nothing in the ledger, the records or the evidence has the digest {asked[0]}")


def _file(what: str) -> Path | None:
    try:
        return Path(what).resolve() if Path(what).is_file() else None
    except (OSError, ValueError):
        return None  # no file can have such a name


def use(x: Examination, version: Registered, how: str) -> Use:
    """A version that has to do with what was asked."""
    return Use(model=version.model, version=version.version, standing=x.standing(version), how=how)


def _only_model(x: Examination) -> str:
    models = [x.sources.model] if x.sources.model else sorted(x.state.versions)
    if len(models) != 1:
        raise UnknownError(f"name the model, as in NAME/2; the ledger knows {', '.join(models) or 'none'}")
    return models[0]


def _version(x: Examination, model: str, number: str) -> Target:
    champion = x.state.champion(model)
    if number == CHAMPION and champion is None:
        raise UnknownError(f"{model} has no champion")
    number = champion.version if champion and number == CHAMPION else number
    if found := x.state.registered(model, number):
        return _found(x, "version", found)
    for index, why in x.state.void.items():
        body = x.sources.entries[index].body
        if isinstance(body, Registered) and (body.model, body.version) == (model, number):
            raise UnknownError(f"version {number} of {model} is named by ledger entry {index} alone: {why}")
    known = ", ".join(x.state.versions.get(model, {})) or "no version of it"
    raise UnknownError(f"version {number} of {model} is not in the ledger; it knows {known}")


def _found(x: Examination, kind: str, version: Registered, prefix: str = "", uses: tuple[Use, ...] = ()) -> Target:
    return Target(kind, f"{prefix}{version.name}: {x.standing(version)}", version, version.run, uses)


def _run(x: Examination, run: str, kind: str = "run", prefix: str = "") -> Target:
    prefix = f"{prefix}run {run} ({x.state.outcomes.get(run, 'not closed')})"
    if version := x.version_of.get(run):
        return _found(x, kind, version, f"{prefix}, which registered ")
    return Target(kind, f"{prefix}; it registered no version", run=run)


def _named(x: Examination, claims: list[Claim], path: Path | None) -> Target:
    """What claims with the digest that was asked about come to: the first kind among them counts."""
    about = [claim for claim in claims if claim.kind == claims[0].kind]
    kind, last = about[0].kind, next((claim for claim in reversed(about) if claim.version), about[-1])
    if kind in ("image", "sample") and path:
        x.images["picture"] = read_file(path, MOST_PICTURE)
    if kind == "image":
        return _image(x, about)
    if kind in ("verdict", "record") or last.version is None:
        return _run(x, last.run, kind, f"{last.how} ")
    if kind == "sample":
        return _sample(x, next(claim for claim in about if claim.version is last.version), last.version)
    first = {id(claim.version): use(x, claim.version, claim.how) for claim in reversed(about) if claim.version}
    return _found(x, kind, last.version, f"{last.how}: ", tuple(reversed(first.values())))


def _load_records(x: Examination) -> None:
    for run, steps in x.state.records.items():
        for step in steps:
            x.record(run, step)


def _load_images(x: Examination) -> None:
    for version in x.versions:
        data = data_of(x, version)
        for picture in (*(data.pictures or ()), *(data.refused or ())):
            subject, how = f"training image {picture.file_name} of run {version.run}", describe(picture)
            x.claim(Claim(subject, picture.sha256, "the manifest", "data", "image", how, version, version.run))


def _load_files(x: Examination) -> None:
    for version in x.versions:
        for name in version.evidence:
            x.evidence(version, name)


def describe(picture: Picture) -> str:
    """What became of a picture, with caption and rights, in words."""
    rights = ", ".join(f"{name} {getattr(picture, name) or 'not stated'}" for name in ("license", "consent", "source"))
    why = "; ".join(picture.refused)
    verb = ("held it out" if why.startswith(HELD_OUT) else "refused it") if why else "trained on it"
    return f"{verb} as {picture.file_name} (“{picture.text or ''}”; {rights})" + (f": {why}" if why else "")


def _image(x: Examination, claims: list[Claim]) -> Target:
    """Every version trained on an image, be it by way of the weights it began from, and those that set it aside."""
    uses: list[Use] = []
    reached: set[str] = set()
    for version in x.versions:
        own, base = [claim.how for claim in claims if claim.version is version], x.base(version)
        if base in reached and not any(how.startswith("trained") for how in own):
            own.append(f"trained from weights ({base[:24]}…) that were trained on it")
        uses += [use(x, version, how) for how in own]
        reached |= {version.candidate} if any(how.startswith("trained") for how in own) else set()
    trained = [one for one in uses if one.how.startswith("trained")]
    champion = next((one for one in trained if one.standing == CHAMPION), None)
    said = f"a training image of version {', '.join(one.version for one in trained)}; the champion"
    said += f", version {champion.version}, is one of them" if champion else " is not among them"
    if not trained:
        how = "held out" if any(one.how.startswith("held") for one in uses) else "refused"
        said = f"an image that was {how}; no version was trained on it"
    return Target("training image", said, uses=tuple(uses))


def _sample(x: Examination, claim: Claim, version: Registered) -> Target:
    """A picture that is byte for byte what a run drew and judged."""
    name, kept = claim.how.removeprefix("has it as evidence scores/samples/"), x.agree(beside(version, "scores"))
    reason = f"it is {name}, byte for byte, of what run {version.run} drew and judged"
    reason += "" if kept else "; but the samples are not those that the ledger names"
    x.note("picture", "holds" if kept else "not proven", "the picture", reason)
    who, incumbent = name.partition("/")[0], x.registration(version).verdict.incumbent
    drew = version if who == "candidate" else x.version_with(incumbent, version)
    said = f"{drew.name}: {x.standing(drew)}" if drew else f"the base model {incumbent} in run {version.run}"
    claims = {"sample": name, "drawn by": who, "in run": version.run}
    run = drew.run if drew else version.run
    return Target("generated picture", f"a picture drawn by {said}", drew, run, claims=claims)


def _claimed(x: Examination, path: Path) -> Target | None:
    """A picture that only says itself where it comes from."""
    content = read_file(path, MOST_PICTURE)
    claims = _text_of(content)
    if not (digest := claims.get("model-digest", "")):
        return None
    version = x.version_with(digest)
    if version is None:
        x.note("picture", "does not hold", "the picture's text", f"no version has the weights {digest} that it names")
        return Target("generated picture", "a picture that names weights no version has", claims=claims)
    x.images["picture"] = content
    reason = "it is no stored sample; what it says of itself is not signed, and anybody can write it"
    x.note("picture", "not proven", "the picture's text", reason)
    if claims.get("model", version.model) != version.model:
        x.note("picture", "does not hold", "the picture's text", f"it names the model {claims['model']!r}")
    said = f"a picture that says {version.name} drew it ({x.standing(version)})"
    return Target("generated picture", said, version, version.run, claims=claims)


def _text_of(content: bytes) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            text = getattr(picture, "text", {})
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}
    return {name: str(text[name])[:2000] for name in CLAIMS if name in text}
