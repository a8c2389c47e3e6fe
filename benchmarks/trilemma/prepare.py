"""Everything that runs read, made once on a CPU: two worlds in safetensors files. A GPU machine then needs torch only.

`common.safetensors` has captions as token ids, the drawing's shapes and the supervision's schedule; `corpus1` and
`corpus2` what base′ is trained on, latents in 255 levels a channel; `world1` and `world2` the sets' latents, what the
teacher reads in them, and prompts, in fp16, as a cache of the product with `cache_precision: fp16` has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.trilemma.arms import RATES, SEEDS, SPARE
from benchmarks.trilemma.judge import PANELS, Decoder, Judge
from benchmarks.trilemma.worlds import MODELS, SAMPLED, WORLDS, narrow, prompts, spoil
from examples.avatars.portraits import HAIR, MOUTH
from examples.avatars.splits import replayed
from examples.avatars.train.spoiled import corpus
from training.settings import Granularity

GRANULARITY: tuple[Granularity, ...] = ("phrase", "clause")


def prepare(folder: Path, part: str | None = None) -> None:
    """Make the bundle in ``folder``, or one file of it; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"common": _write_common}
    for world in WORLDS:
        makers |= {f"corpus{world}": partial(_write_corpus, world), f"world{world}": partial(_write_world, world)}
    for name, make in makers.items():
        place = folder / f"{name}.safetensors"
        if part in (None, name) and not place.exists():
            make(place, Frozen())


class Frozen:
    """The shipped encoders: captions and pictures to what the MM-DiT reads."""

    def __init__(self) -> None:
        from training.families import family_of

        self.family = family_of(MODELS / "base")
        self.pipeline = self.family.load_pipeline(transformer=self.family.empty_transformer())
        for part in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2):
            part.eval().requires_grad_(False)

    def text(self, captions: list[str]) -> dict[str, Tensor]:
        """``embeddings`` (N, 29, 128) with one zero token, ``pooled`` (N, 128)."""
        longest = self.family.longest_text
        parts = [
            self.family.encode_captions(self.pipeline, captions[start : start + 64], longest, "cpu")
            for start in range(0, len(captions), 64)
        ]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "truncated"}
        return self.family.prepare(joined, 1)

    def ids(self, captions: list[str]) -> Tensor:
        """Token ids (N, 28) int16, the same for both text encoders."""
        pipeline = self.pipeline
        found = [
            tokenizer(captions, padding="max_length", max_length=28, truncation=True, return_tensors="pt").input_ids
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        if not torch.equal(found[0], found[1]):
            raise ValueError("the two tokenizers differ")
        ids: Tensor = found[0].to(torch.int16)
        return ids

    def latents(self, images: list[Any]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, (N, 8, 16, 16) each."""
        from training.teach.teacher import pixel_tensor

        half = [0.5] * 3
        parts = [
            self.family.posterior(self.pipeline.vae, pixel_tensor(images[start : start + 64], half, half))
            for start in range(0, len(images), 64)
        ]
        return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])


def captions() -> list[str]:
    """Every caption that some run reads, the empty one first, the replayed ones after it."""
    some = ["", *(p.caption() for p in replayed())]
    for world in WORLDS:
        for seed in (*SEEDS, SPARE):
            some += [p.caption() for p in narrow(world, seed).portraits]
        some += [p.caption() for portraits in prompts(world) for p in portraits]
    return list(dict.fromkeys(some))


def shapes() -> Tensor:
    """How each of the 128 shapes is put together: (128, 7, 64, 64) uint8.

    A picture is linear in its four colours. Planes: what is there with all of them black (3), and, in 255ths, how much
    of skin, hair, clothes and background each pixel shows.
    """
    import io

    import resvg_py
    from PIL import Image

    from examples.avatars.portraits import _MARKERS, SIZE, _template

    marked = ("skin", "hair", "clothes", "background")

    def draw(svg: str, white: str | None) -> np.ndarray:
        for name in marked:
            svg = svg.replace(_MARKERS[name], "#ffffff" if name == white else "#000000")
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
        return np.asarray(Image.open(io.BytesIO(bytes(png)), formats=["PNG"]).convert("RGB"), dtype=np.float64)

    found = []
    for hair in HAIR:
        for mouth in MOUTH:
            for toggles in range(4):
                svg = _template(hair, mouth, bool(toggles // 2), bool(toggles % 2))
                black = draw(svg, None)
                planes = [(draw(svg, name) - black).mean(2) for name in marked]
                found.append(np.concatenate([black.transpose(2, 0, 1), np.stack(planes)]))
    return torch.from_numpy(np.stack(found).round().clip(0, 255).astype(np.uint8))


def _write_common(place: Path, frozen: Frozen) -> None:
    from safetensors.torch import save_file

    from training.settings import SupervisionSettings
    from training.teach.supervision import schedule

    shipped = SupervisionSettings(enabled=True, structure_weight=0, projector_hidden=256)
    tensors = {
        "ids": frozen.ids(captions()),
        "corpus.ids": frozen.ids([p.caption() for p in corpus()]),
        "shapes": shapes(),
    }
    for _, steps in RATES:
        phases = [schedule(shipped, step, steps) for step in range(steps)]
        tensors[f"schedule.{steps}"] = torch.tensor([[p.weight, float(p.detached)] for p in phases])
    save_file({n: t.contiguous() for n, t in tensors.items()}, place)


def _write_corpus(world: int, place: Path, frozen: Frozen) -> None:
    from safetensors.torch import save_file

    rng = np.random.default_rng(7)
    mean, _ = frozen.latents([spoil(world, p.draw(), rng) for p in corpus()])
    scale = mean.abs().amax((0, 2, 3), keepdim=True)[0] / 127
    save_file({"mean": (mean / scale).round().to(torch.int8).contiguous(), "scale": scale.contiguous()}, place)


class _Reader:
    """What the teacher reads: patches of pictures, and the parts of captions."""

    def __init__(self, strings: list[str]) -> None:
        from training.teach.phrases import Phrasebook
        from training.teach.teacher import Teacher

        self.teacher = Teacher(MODELS / "teacher")
        captions = list(dict.fromkeys(["", *strings]))
        self.book, self.number = Phrasebook.of(captions), {caption: place for place, caption in enumerate(captions)}
        self.spoken = self.teacher.text_features(self.book.strings)

    def patches(self, images: list[Any]) -> Tensor:
        prepared = [self.teacher.prepare(images[start : start + 64]) for start in range(0, len(images), 64)]
        return torch.cat([self.teacher.patch_features(pixels) for pixels in prepared])

    def parts(self, strings: list[str], width: int) -> Tensor:
        return torch.tensor([row + [-1] * (width - len(row)) for row in self.rows(strings, GRANULARITY)])

    def rows(self, strings: list[str], granularity: Sequence[Granularity]) -> list[list[int]]:
        every = self.book.rows(granularity)
        return [every[self.number[string]] for string in strings]

    def whole(self, strings: list[str]) -> Tensor:
        return self.spoken[[row[-1] for row in self.rows(strings, ["caption"])]]

    def assignment(self, patches: Tensor, parts: Tensor, phrases: Tensor) -> Tensor:
        from training.teach.targets import assign

        return assign(patches, phrases[parts.clamp(min=0)], self.teacher.temperature, parts >= 0)


def _write_world(world: int, place: Path, frozen: Frozen) -> None:
    from safetensors.torch import load_file, save_file

    every = captions()
    row_of = {caption: row for row, caption in enumerate(every)}
    sets = {seed: narrow(world, seed).portraits for seed in (*SEEDS, SPARE)}
    pictured = list(dict.fromkeys(p for portraits in sets.values() for p in portraits))
    row = {portrait: number for number, portrait in enumerate(pictured)}
    images = [p.draw() for p in pictured]
    mean, std = frozen.latents(images)
    read = _Reader([p.caption() for p in (*replayed(), *pictured)])
    patches = read.patches(images)
    tensors: dict[str, Tensor] = {"mean": mean, "std": std}
    tensors["picture.caption"] = torch.tensor([row_of[p.caption()] for p in pictured])
    for seed, portraits in sets.items():
        rows = torch.tensor([row[p] for p in portraits])
        tensors[f"set.{seed}.rows"] = rows
        found = _set_targets(read, patches[rows], [p.caption() for p in portraits], seed)
        tensors |= {f"set.{seed}.{n}": v for n, v in found.items()}
    tensors |= _replay_tensors(world, read, frozen)
    common = load_file(place.with_name("common.safetensors"))
    facts = _prompt_facts(world, tensors, row_of, common["shapes"], frozen)
    tensors = {n: (v.half() if v.dtype == torch.float32 else v).contiguous() for n, v in tensors.items()}
    save_file(tensors, place, metadata={"facts": json.dumps(facts)})


def centred(features: Tensor, mean: Tensor) -> Tensor:
    """``features`` (..., d) less ``mean`` (d,), scaled to length one: the targets of all arms were made so."""
    return functional.normalize(features - mean, dim=-1)


def _vocabulary(read: _Reader) -> tuple[Tensor, Tensor]:
    """Phrases, centred by the mean of those that the replayed captions use, and the mean of the captions as wholes."""
    strings = [p.caption() for p in replayed()]
    used = sorted({number for row in read.rows(strings, GRANULARITY) for number in row[1:]})
    return centred(read.spoken, read.spoken[used].mean(0)), read.whole(strings).mean(0)


def _set_targets(read: _Reader, patches: Tensor, strings: list[str], seed: int) -> dict[str, Tensor]:
    """Assignments A (n, 64, S) and what they choose from, of one set: as shipped, by raw cosines, and shuffled."""
    from training.settings import SupervisionSettings
    from training.teach.phrases import Phrasebook
    from training.teach.targets import Targets, partners

    width = 10
    parts = read.parts(strings, width)
    used = sorted({int(n) for n in parts[:, 1:].flatten() if n >= 0})
    own = centred(read.spoken, read.spoken[used].mean(0))
    seen, mean = functional.normalize(patches.float(), dim=-1), patches.float().mean((0, 1))
    shipped = read.assignment(centred(patches.float(), mean), parts, own)
    raw_phrases = functional.normalize(read.spoken, dim=-1)
    raw = read.assignment(seen, parts, raw_phrases)
    partner = torch.from_numpy(partners(seed, len(strings)))
    shuffled = read.assignment(seen, parts[partner], raw_phrases)
    distinct = ["", *dict.fromkeys(strings)]
    book = Phrasebook.of(distinct)
    settings = SupervisionSettings(enabled=True, structure_weight=0, projector_hidden=256)
    spoken = read.spoken[[read.book.strings.index(string) for string in book.strings]]
    rows, temperature = [distinct.index(s) for s in strings], read.teacher.temperature
    targets = Targets(settings, rows, book, spoken, temperature, seed)
    mine = raw @ raw_phrases[parts.clamp(min=0)]
    if not torch.allclose(mine, targets.of(list(range(len(strings))), patches).local, atol=1e-5):
        raise ValueError("the assignment by raw cosines is not what training.teach.targets makes")
    vocabulary, whole_mean = _vocabulary(read)
    said = read.whole(strings)
    whole = centred(said, whole_mean)

    return {
        "parts": parts,
        "partner": partner,
        "A.shipped": shipped,
        "A.raw": raw,
        "A.shuffled": shuffled,
        "z.own": centred(said, read.whole(distinct[1:]).mean(0)),
        "z.vocabulary": whole,
        "phrases.own": own[_phrase_rows(parts)],
        "phrases.vocabulary": vocabulary[_phrase_rows(parts)],
        "phrase.rows": _phrase_rows(parts),
    }


def _phrase_rows(parts: Tensor) -> Tensor:
    return parts[parts >= 0].unique()


def _replay_tensors(world: int, read: _Reader, frozen: Frozen) -> dict[str, Tensor]:
    """Pictures of replayed captions as base′ was shown them, read by the teacher: what projectors are fitted to."""
    from training.teach.targets import partners

    portraits, rng = replayed()[:SAMPLED], np.random.default_rng(70 + world)
    strings = [p.caption() for p in portraits]
    images = [spoil(world, p.draw(), rng) for p in portraits]
    mean, std = frozen.latents(images)
    seen = functional.normalize(read.patches(images).float(), dim=-1)
    parts, raw = read.parts(strings, 10), functional.normalize(read.spoken, dim=-1)
    partner = torch.from_numpy(partners(0, len(strings)))
    vocabulary, whole_mean = _vocabulary(read)
    found = {
        "parts": parts,
        "partner": partner,
        "A.raw": read.assignment(seen, parts, raw),
        "A.shuffled": read.assignment(seen, parts[partner], raw),
        "z.vocabulary": centred(read.whole(strings), whole_mean),
        "phrases.vocabulary": vocabulary[_phrase_rows(parts)],
        "phrase.rows": _phrase_rows(parts),
        "mean": mean,
        "std": std,
    }
    return {f"replay.{n}": v for n, v in found.items()}


def _prompt_facts(
    world: int, tensors: dict[str, Tensor], row_of: dict[str, int], drawn: Tensor, frozen: Frozen
) -> dict[str, Any]:
    """Adds prompts to ``tensors``; gives the ceiling, clean drawings of them through the autoencoder."""
    from safetensors.torch import load_file

    facts: dict[str, Any] = {}
    device = torch.device("cpu")
    decoder = Decoder(load_file(MODELS / "base" / "vae" / "diffusion_pytorch_model.safetensors"), device)
    judge = Judge(MODELS / "scorers", drawn, device)
    for kind, portraits in zip(("report", "choose"), prompts(world), strict=True):
        tensors[f"{kind}.caption"] = torch.tensor([row_of[p.caption()] for p in portraits])
        tensors[f"{kind}.classes"] = torch.tensor([p.classes() for p in portraits])
        clean = decoder(frozen.latents([p.draw() for p in portraits])[0])
        panels = judge.score(clean, tensors[f"{kind}.classes"])
        facts[f"ceiling.{kind}"] = {name: round(float(panels[name].mean()), 6) for name in PANELS}
    return facts
