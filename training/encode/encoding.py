"""Encoding: from pictures and captions to the features folder, each picture read once.

Which features are kept is a setting. What is kept goes into shards (`training.encode.shelf`); a second try takes
up what the first one finished. The disk that all of it needs is reckoned from one blank picture and the longest texts
before anything is written.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lineage.digests import code_digest, digest_file, digest_json, digest_path, packages_digest
from lineage.progress import track
from training.encode.features import CORPUS, Features
from training.encode.features_info import FeaturesInfo, longest_text, needed_parts, structure_of, write_info
from training.encode.frozen import Frozen, Tensors, fitted, pictures_at_once
from training.encode.shelf import Shelf, links
from training.errors import TrainingError
from training.families import family_of
from training.settings import Part, TrainingSettings
from training.teach.phrases import Phrasebook
from training.teach.structure import check_grid

SHARD_ROWS = 1024
SHARD_BYTES = 256 * 2**20
"""Most rows, and about the most bytes, of a shard: what a kill can cost."""
REPORTED = 1024
"""Pictures, from the first, over which the alignment is reported."""


@dataclass(frozen=True)
class Corpus:
    """Pictures with captions."""

    manifest: str
    """Digest of the manifest that lists them."""
    captions: Sequence[str]
    """One caption a picture."""
    load: Callable[[Sequence[int]], list[Image.Image]]
    """Gives the pictures of some rows."""
    rows: Sequence[dict[str, Any]]
    """Of each picture ``file_name``, ``sha256`` and ``uri``."""
    sizes: Sequence[tuple[int, int]] | None = None
    """Width and height that each picture is brought to, in pixels; None: the base model's own square."""

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class _Part:
    """Something that is encoded from pictures."""

    shelf: Shelf
    encode: Callable[[Sequence[Image.Image]], Tensors]
    sums: bool = False
    """Only the sum over pictures is kept."""


def encode(settings: TrainingSettings, corpus: Corpus, folder: Path, cache: Path | None = None) -> FeaturesInfo:
    """Encode ``corpus`` into a features folder.

    ``cache``: a folder that outlives the call, where finished shards are kept and found again; None: nothing is.

    Raises:
        TrainingError: the corpus is empty, a model cannot be used, or the disk has too little room.
    """
    if not len(corpus):
        raise TrainingError("there are no pictures to encode: the validated manifest is empty")
    torch.set_num_threads(settings.processes * settings.threads_per_process)
    folder.mkdir(parents=True, exist_ok=True)
    return _Encoding(settings, corpus, folder, cache).run()


class _Encoding:
    def __init__(self, settings: TrainingSettings, corpus: Corpus, folder: Path, cache: Path | None) -> None:
        self.settings, self.corpus, self.folder, self.cache = settings, corpus, folder, cache
        self.frozen, self.parts = Frozen(settings), needed_parts(settings)
        self.captions = list(dict.fromkeys(["", *corpus.captions]))
        self.strings = Phrasebook.of(self.captions).strings if "teacher" in self.parts else []
        self.texts = {"text": self.captions} if "text" in self._kept() else {}
        self.texts |= {"strings": self.strings} if self.strings else {}
        self.family = family_of(settings.base_model)
        self.longest = longest_text(settings)
        side = self.family.resolution
        sizes = corpus.sizes or [(side, side)] * len(corpus)
        self.family.check_sizes(set(sizes))
        self.order = sorted(range(len(corpus)), key=lambda row: sizes[row])
        self.sizes = [sizes[row] for row in self.order]
        self.layout = digest_json([[row, *size] for row, size in zip(self.order, self.sizes, strict=True)])
        self.structure = structure_of(settings)
        teacher = settings.teacher if "teacher" in self.parts else None
        self.encoders = self.family.encoders_digest()
        self.teacher = digest_path(teacher) if teacher else None
        self.makers = {"code": code_digest("training"), "packages": packages_digest()}

    def run(self) -> FeaturesInfo:
        self._check_grids()
        bytes_a_row = self._measure()
        # Texts do not decide how pictures are cut: another length of texts costs no picture.
        rows = {part: _rows_of(bytes_a_row[part]) for part in self.texts}
        pictures = _rows_of(max((n for part, n in bytes_a_row.items() if part not in self.texts), default=1))
        parts = self._picture_parts(pictures)
        shelves = {part: self._shelf(part, rows[part]) for part in self.texts}
        shelves |= {name: part.shelf for name, part in parts.items()}
        self._check_room(bytes_a_row, shelves)
        for part, make in (("text", self.frozen.text), ("strings", self.frozen.strings)):
            if part in self.texts:
                self._encode_texts(shelves[part], self.texts[part], make, rows[part])
        self._encode_pictures(list(parts.values()), pictures)
        return self._finish(shelves)

    def _kept(self) -> list[Part]:
        return [part for part in self.parts if part in self.settings.cached]

    def _key(self, part: str, rows: int) -> dict[str, Any]:
        """All that decides a part's shards."""
        model: Any = self.encoders if part in ("latents", "text") else self.teacher
        if part == "structure" and self.structure:
            model = self.structure.model_dump(mode="json")
        key: dict[str, Any] = self.makers | {
            "manifest": self.corpus.manifest,
            "sizes": self.layout,
            "rows": rows,
            "model": model,
            "kept": part in self.settings.cached,
        }
        if part in self.texts:
            key["texts"] = digest_json(self.texts[part])
        if part in ("latents", "text"):
            key["precision"] = self.settings.cache_precision
        if part == "text":
            key["longest"] = self.longest
        return key

    def _shelf(self, part: str, rows: int) -> Shelf:
        return Shelf(self.folder, self.cache, part, self._key(part, rows))

    def _picture_parts(self, rows: int) -> dict[str, _Part]:
        kept, made = self._kept(), {}
        if "latents" in kept:
            made["latents"] = _Part(self._shelf("latents", rows), self.frozen.latents)
        if "teacher" in self.parts:
            # The target is centred by the mean patch of the whole corpus, also where patches are not kept.
            made["teacher"] = _Part(
                self._shelf("teacher", rows), self.frozen.teacher_patches, sums="teacher" not in kept
            )
        if "structure" in kept:
            made["structure"] = _Part(self._shelf("structure", rows), self.frozen.structure)
        return made

    def _measure(self) -> dict[str, int]:
        """Bytes that one row of each kept part takes at most, from a blank picture of the largest size and the text
        of the most characters: Qwen-Image pads texts to the longest of a shard only."""
        size = max(self.sizes, key=lambda size: size[0] * size[1])
        blank = [Image.new("RGB", size)]
        kept, measured = self._kept(), {}
        if "latents" in kept:
            measured["latents"] = _bytes(self.frozen.latents(blank))
        if "text" in kept:
            measured["text"] = _bytes(self.frozen.text([max(self.captions, key=len)]))
        if "teacher" in kept:
            measured["teacher"] = _bytes(self.frozen.teacher_patches(blank))
        if "structure" in kept:
            measured["structure"] = _bytes(self.frozen.structure(blank))
        if self.strings:
            measured["strings"] = _bytes(self.frozen.strings([max(self.strings, key=len)]))
        return measured

    def _check_grids(self) -> None:
        """Refuse a teacher or vision model that looks more finely than pictures have image tokens."""
        finest = [self.frozen.teacher.grid] if "teacher" in self.parts else []
        if "structure" in self.parts:
            finest.append((self.frozen.structure_model.grid,) * 2)
        factor = self.family.vae_factor
        for width, height in set(self.sizes):
            for patches in finest:
                check_grid(self.family.grid(height // factor, width // factor), patches)

    def _check_room(self, bytes_a_row: dict[str, int], shelves: dict[str, Shelf]) -> None:
        counts = {part: len(texts) for part, texts in self.texts.items()}
        needed = {part: size * counts.get(part, len(self.corpus)) for part, size in bytes_a_row.items()}
        total = sum(needed.values())
        listed = ", ".join(f"{part} {_readable(size)}" for part, size in needed.items())
        place = self.cache or self.folder
        print(f"features of {len(self.corpus)} pictures take about {_readable(total)} ({listed}); "
              f"{_readable(shutil.disk_usage(place).free)} are free at {place}", flush=True)  # fmt: skip
        asked = [(place, total - sum(min(size, shelves[part].kept_bytes()) for part, size in needed.items()))]
        if self.cache and not links(self.cache, self.folder):
            asked.append((self.folder, total))
        for place, _ in asked:
            free = shutil.disk_usage(place).free
            if sum(size for other, size in asked if other.stat().st_dev == place.stat().st_dev) > free:
                raise TrainingError(
                    f"features would take about {_readable(total)} ({listed}), but {place} has {_readable(free)} free; "
                    "make room, take names out of training.cached, or set training.cache_precision to fp16"
                )

    def _encode_texts(
        self, shelf: Shelf, texts: list[str], make: Callable[[Sequence[str]], Tensors], rows: int
    ) -> None:
        for number, run in enumerate(_runs(len(texts), rows)):
            if not shelf.take(number, len(run)):
                shelf.write(number, len(run), make(texts[run.start : run.stop]))

    def _encode_pictures(self, parts: list[_Part], rows: int) -> None:
        """Write what is missing of every shard; each picture is read once for all parts that lack it."""
        runs = list(self._picture_runs(rows))
        for number, run in enumerate(track(runs, "encoding shard", len(runs))):
            missing = [part for part in parts if not part.shelf.take(number, len(run))]
            made: dict[Shelf, list[Tensors]] = {part.shelf: [] for part in missing}
            size = self.sizes[run.start]
            for batch in _runs(len(run), pictures_at_once(size)) if missing else ():
                images = [fitted(image, size) for image in self.corpus.load([self.order[run[i]] for i in batch])]
                for part in missing:
                    tensors = part.encode(images)
                    made[part.shelf].append({"sum": tensors["sum"]} if part.sums else tensors)
            for part in missing:
                part.shelf.write(number, len(run), _joined(made[part.shelf]))

    def _picture_runs(self, rows: int) -> Iterator[range]:
        """Runs of samples that make a shard: pictures of one size."""
        start = 0
        for _, _, count in self._size_runs():
            yield from (range(start + run.start, start + run.stop) for run in _runs(count, rows))
            start += count

    def _size_runs(self) -> Iterator[tuple[int, int, int]]:
        for size, count in Counter(self.sizes).items():
            yield (*size, count)

    def _finish(self, shelves: dict[str, Shelf]) -> FeaturesInfo:
        """Write the corpus, and ``features.json`` last."""
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        corpus: dict[str, Any] = {
            "captions": self.captions,
            "strings": self.strings,
            "rows": [numbers[self.corpus.captions[row]] for row in self.order],
        }
        if set(self.parts) - {"text"} - set(self._kept()):
            # Where pictures lie is named only if training has to read them: it changes nothing else.
            named = [self.corpus.rows[row] for row in self.order]
            corpus["pictures"] = [{name: row[name] for name in ("file_name", "sha256", "uri")} for row in named]
        (self.folder / CORPUS).write_text(json.dumps(corpus, ensure_ascii=False), "utf-8")
        info = FeaturesInfo(
            manifest=self.corpus.manifest,
            base_model=digest_path(self.settings.base_model),
            encoders=self.encoders,
            teacher=self.teacher,
            temperature=self.frozen.teacher.temperature if self.strings else None,
            structure=self.structure,
            precision=self.settings.cache_precision,
            images=len(self.corpus),
            captions=len(self.captions),
            phrases=len(self.strings),
            longest=self.longest if "text" in self.texts else None,
            truncated_captions=None,
            sizes=[(count, width, height) for width, height, count in self._size_runs()],
            corpus=digest_file(self.folder / CORPUS),
            cached=tuple(self._kept()),
            parts={name: shelf.shards() for name, shelf in shelves.items()},
            alignment={},
        )
        write_info(self.folder, info)
        features = Features(self.folder, self.settings)
        info = info.model_copy(
            update={"alignment": features.alignment(REPORTED), "truncated_captions": features.truncated_captions()}
        )
        write_info(self.folder, info)
        return info


def _rows_of(bytes_a_row: int) -> int:
    """Rows of a shard."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // bytes_a_row))


def _runs(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _joined(batches: list[Tensors]) -> Tensors:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _readable(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
