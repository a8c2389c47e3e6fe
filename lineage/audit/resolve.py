"""What was asked about: a version, a run, a digest, a training image, a generated picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lineage.audit import pictures
from lineage.audit.examination import Examination, beside
from lineage.audit.report import Picture, Use
from lineage.digests import PREFIX, LineageError, digest_file
from lineage.entries import Registered
from lineage.records import StepRecord

VERSION = re.compile(r"(?:models:/)?(?:(?P<model>[^@]+)[/@])?(?P<number>\d+|champion)")
DIGEST = re.compile(rf"(?:{PREFIX})?(?P<hex>[0-9a-f]{{64}})")
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
    path, digest = Path(what), DIGEST.fullmatch(what)
    if not image and (named := VERSION.fullmatch(what)) and not ("/" in what and path.is_file()):
        return _version(x, named["model"] or _only_model(x), named["number"])
    if not image and any(run == what for run, _ in x.state.records):
        return _run(x, what)
    if not digest and not path.is_file():
        kinds = "an image file or its digest" if image else "a version, `champion`, a run, a digest or a file"
        raise UnknownError(f"{what!r} is not {kinds} that the ledger knows")
    content = PREFIX + digest["hex"] if digest else digest_file(path)
    found = None if image else _by_digest(x, content)
    found = found or _training_image(x, content, what, image) or _sample(x, content) or _stored_file(x, content)
    if found is None and not digest:
        found = _claimed(x, path)
    if found is None:
        raise UnknownError(f"nothing in the ledger, the records or the evidence has the digest {content}")
    return found


def use(x: Examination, version: Registered, how: str) -> Use:
    """A version that has to do with what was asked."""
    return Use(model=version.model, version=version.version, standing=x.history.standing(version), how=how)


def _only_model(x: Examination) -> str:
    if x.sources.registry:
        return x.sources.registry.model_name
    models = sorted({model for model, _ in x.history.registered})
    if len(models) != 1:
        raise UnknownError(f"name the model, as in NAME/2; the ledger knows {', '.join(models) or 'none'}")
    return models[0]


def _version(x: Examination, model: str, number: str) -> Target:
    champion = x.state.champion(model)
    if number == "champion":
        if champion is None:
            raise UnknownError(f"{model} has no champion")
        number = champion.version
    if (model, number) not in x.history.registered:
        for index, why in x.state.void.items():
            body = x.sources.entries[index].body
            if (body.get("model"), body.get("version")) == (model, number):
                raise UnknownError(f"version {number} of {model} is named by ledger entry {index} alone: {why}")
        known = ", ".join(version for name, version in x.history.registered if name == model)
        raise UnknownError(f"version {number} of {model} is not in the ledger; it knows {known or 'no version of it'}")
    return _found(x, "version", x.history.registered[model, number][1])


def _found(x: Examination, kind: str, version: Registered, prefix: str = "", uses: tuple[Use, ...] = ()) -> Target:
    said = f"{prefix}version {version.version} of {version.model}: {x.history.standing(version)}"
    return Target(kind, said, version, version.run, uses)


def _run(x: Examination, run: str, kind: str = "run", prefix: str = "") -> Target:
    version = next((v for v in reversed(x.history.versions) if v.run == run), None)
    outcome = x.state.outcomes.get(run, "not closed")
    prefix = f"{prefix}run {run} ({outcome})"
    if version:
        return _found(x, kind, version, f"{prefix}, which registered ")
    return Target(kind, f"{prefix}; it registered no version", run=run)


def _by_digest(x: Examination, digest: str) -> Target | None:
    if digest in x.history.of_weights:
        uses = tuple(use(x, version, "has these weights") for _, version in x.history.of_weights[digest])
        return _found(x, "weights", x.history.of_weights[digest][-1][1], "the weights of ", uses)
    if digest in x.history.judged:
        return _run(x, x.history.judged[digest][1].run, "verdict", "the verdict of ")
    for (run, step), record in x.state.records.items():
        if record == digest:
            return _run(x, run, "record", f"the record of step {step} in ")
    uses = tuple(
        use(x, version, f"has it as evidence {name!r}")
        for version in x.history.versions
        for name, evidence in version.evidence.items()
        if evidence == digest
    )
    return _last(x, "evidence", uses) or _named_in_records(x, digest)


def _named_in_records(x: Examination, digest: str) -> Target | None:
    uses: list[Use] = []
    runs: dict[str, str] = {}
    for run, step in x.state.records:
        record = x.record(run, step)
        names = [name for name, named in _digests(record) if named == digest] if record else []
        if names:
            runs.setdefault(run, f"step {step} names it as {', '.join(sorted(set(names)))}")
    for version in x.history.versions:
        if version.run in runs:
            uses.append(use(x, version, runs[version.run]))
    if uses or not runs:
        return _last(x, "digest", tuple(uses))
    run, how = list(runs.items())[-1]
    return _run(x, run, "digest", f"{how} in ")


def _digests(record: StepRecord) -> Iterator[tuple[str, str]]:
    yield from record.inputs.items()
    yield from record.outputs.items()
    yield from (("code", record.code), ("packages", record.packages), ("image", record.image or ""))
    yield "evaluation set", (record.facts.get("evaluation_set") or {}).get("digest", "")
    yield from ((f"scorer {scorer['name']}", scorer["digest"]) for scorer in record.facts.get("scorers", []))


def _last(x: Examination, kind: str, uses: tuple[Use, ...]) -> Target | None:
    if not uses:
        return None
    version = x.history.registered[uses[-1].model, uses[-1].version][1]
    return _found(x, kind, version, f"{uses[-1].how}: ", uses)


def _training_image(x: Examination, digest: str, what: str, asked: bool) -> Target | None:
    uses: list[Use] = []
    reached: set[str] = set()
    for version in x.history.versions:
        data = pictures.data(x, version)
        trained = [picture for picture in data.pictures or () if picture.sha256 == digest]
        uses += [use(x, version, f"trained on it as {describe(picture)}") for picture in trained]
        uses += [
            use(x, version, f"{_set_aside(picture)} as {describe(picture)}: {'; '.join(picture.refused)}")
            for picture in data.refused or ()
            if picture.sha256 == digest
        ]
        base = x.base(version)
        if trained or base in reached:
            reached.add(version.candidate)
        if base in reached and not trained:
            uses.append(use(x, version, f"trained from weights ({base[:19]}…) that were trained on it"))
    if not uses:
        return Target("training image", "no version was trained on it, and none refused it") if asked else None
    if Path(what).is_file():
        x.images["picture"] = Path(what).read_bytes()
    trained_on = [u for u in uses if u.how.startswith("trained")]
    if not trained_on:
        how = "held out" if any(u.how.startswith("held") for u in uses) else "refused"
        return Target("training image", f"an image that was {how}; no version was trained on it", uses=tuple(uses))
    champion = next((u for u in trained_on if u.standing == "champion"), None)
    said = f"a training image of version {', '.join(u.version for u in trained_on)}; "
    said += (
        f"the champion, version {champion.version}, is one of them" if champion else "the champion is not among them"
    )
    return Target("training image", said, uses=tuple(uses))


def _set_aside(picture: Picture) -> str:
    return "held it out" if picture.refused[0].startswith(pictures.HELD_OUT) else "refused it"


def describe(picture: Picture) -> str:
    """A training image with caption and rights, in words."""
    rights = ", ".join(f"{name} {getattr(picture, name) or 'not stated'}" for name in ("license", "consent", "source"))
    return f"{picture.file_name} (“{picture.text or ''}”; {rights})"


def _sample(x: Examination, digest: str) -> Target | None:
    for version in reversed(x.history.versions):
        scores = x.evidence(version, "scores")
        for path in sorted((scores / "samples").rglob("*.png")) if scores else ():
            if digest_file(path) == digest:
                x.images["picture"] = path.read_bytes()
                name = f"{path.parent.name}/{path.name}"
                kept = x.findings[beside(version, "scores")].standing == "holds"
                reason = f"it is {name}, byte for byte, of what run {version.run} drew and judged"
                reason += "" if kept else "; but the samples are not those that the ledger names"
                x.note("picture", "holds" if kept else "not proven", "the picture", reason)
                return _drawn(x, version, path.parent.name, name)
    return None


def _drawn(x: Examination, version: Registered, who: str, name: str) -> Target:
    claims = {"sample": name, "drawn by": who, "in run": version.run}
    entry, _ = x.history.registered[version.model, version.version]
    incumbent = x.state.verdicts[version.verdict].incumbent
    drew = version if who == "candidate" else x.history.version_with(incumbent, entry.index)
    if drew is None:
        said = f"a picture drawn by the base model {incumbent} in run {version.run}"
        return Target("generated picture", said, run=version.run, claims=claims)
    said = f"a picture drawn by version {drew.version} of {drew.model}: {x.history.standing(drew)}"
    return Target("generated picture", said, drew, drew.run, claims=claims)


def _stored_file(x: Examination, digest: str) -> Target | None:
    uses: list[Use] = []
    for version in x.history.versions:
        for name in sorted(version.evidence):
            place = x.evidence(version, name)
            for path in place.rglob("*") if place and place.is_dir() else ():
                if path.is_file() and digest_file(path) == digest:
                    inner = f"{name}/{path.relative_to(place).as_posix()}" if place else name
                    uses.append(use(x, version, f"has it as evidence {inner}"))
    return _last(x, "evidence", tuple(uses))


def _claimed(x: Examination, path: Path) -> Target | None:
    """A picture that only says itself where it comes from."""
    claims = _text_of(path)
    digest = claims.get("model-digest", "")
    if not digest:
        return None
    version = x.history.version_with(digest)
    if version is None:
        x.note("picture", "does not hold", "the picture's text", f"no version has the weights {digest} that it names")
        return Target("generated picture", "a picture that names weights no version has", claims=claims)
    x.images["picture"] = path.read_bytes()
    reason = "it is no stored sample; what it says of itself is not signed, and anybody can write it"
    x.note("picture", "not proven", "the picture's text", reason)
    if claims.get("model", version.model) != version.model:
        x.note("picture", "does not hold", "the picture's text", f"it names the model {claims['model']!r}")
    said = f"a picture that says version {version.version} of {version.model} drew it ({x.history.standing(version)})"
    return Target("generated picture", said, version, version.run, claims=claims)


def _text_of(path: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = getattr(picture, "text", {})
    except (OSError, ValueError, SyntaxError):
        return {}
    return {name: str(text[name])[:2000] for name in CLAIMS if name in text}
