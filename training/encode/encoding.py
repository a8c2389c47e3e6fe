"""Encoding: from pictures and captions to the features folder, each picture read once.

Rows that an earlier try or run has kept are taken as they are (`training.encode.store`), and a model is loaded only
where a row is missing. The disk that the missing ones need is reckoned, before anything is written, from one blank
picture and the longest texts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from lineage.digests import digest_file, hex_of
from lineage.progress import track
from training.encode.captions import replayed_captions
from training.encode.encoders import Encoders, Tensors, fitted, pictures_at_once, rows_of
from training.encode.features import Features
from training.encode.info import CORPUS, FeaturesInfo, made_of, needed_parts, part_folder, text_key, write_info
from training.encode.pictures import corpus_digest
from training.encode.store import PartStore, digest_rows, links
from training.errors import TrainingError
from training.settings import TrainingSettings
from training.teach.phrases import Phrasebook
from training.teach.structure import check_grid
from training.teach.teacher import temperature_of

REPORTED = 1024
"""Pictures, from the first, over which the alignment is reported."""
ROW = 150
"""Bytes that a row takes in the header of its segment."""
TEXTS = 512
"""Texts that are encoded between two looks at whether a segment is full."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Corpus:
    """Pictures with captions."""

    rows: Sequence[Mapping[str, Any]]
    """Of each picture ``file_name``, ``sha256``, ``uri`` and its caption, ``text``."""
    load: Callable[[Sequence[int]], list[Image.Image]]
    """Gives the pictures of some rows."""
    sizes: Sequence[tuple[int, int]] | None = None
    """Width and height that each picture is brought to, in pixels; None: the base model's own square."""


def encode(settings: TrainingSettings, corpus: Corpus, folder: Path, cache: Path | None = None) -> FeaturesInfo:
    """Encode ``corpus`` into a features folder.

    ``cache``: a folder that outlives the call, where rows are kept and found again; None: nothing is.

    Raises:
        TrainingError: the corpus is empty, a model cannot be used, or the disk has too little room.
    """
    if not corpus.rows:
        raise TrainingError("there are no pictures to encode: the validated manifest is empty")
    torch.set_num_threads(settings.processes * settings.threads_per_process)
    for place in (folder, cache or folder):
        place.mkdir(parents=True, exist_ok=True)
    return _Encoding(settings, corpus, folder, cache).run()


class _Encoding:
    def __init__(self, settings: TrainingSettings, corpus: Corpus, folder: Path, cache: Path | None) -> None:
        self.settings, self.corpus, self.folder, self.cache = settings, corpus, folder, cache
        self.encoders = Encoders(settings)
        self.family = self.encoders.family
        sizes = corpus.sizes or [(self.family.resolution,) * 2] * len(corpus.rows)
        self.family.check_sizes(set(sizes))
        self.order = sorted(range(len(sizes)), key=lambda row: sizes[row])
        self.sizes = [sizes[row] for row in self.order]
        self.rows = [corpus.rows[row] for row in self.order]
        self.made = made_of(settings, corpus_digest(corpus.rows))
        needed = needed_parts(settings)
        self.cached = tuple(part for part in needed if part in settings.cached)
        shown = list(dict.fromkeys([self.family.unconditional or "", *(row["text"] for row in corpus.rows)]))
        self.book = Phrasebook.of(shown) if "teacher" in needed else Phrasebook([], {})
        self.replayed = replayed_captions(settings.replay.captions) if settings.replay.captions else []
        self.captions = list(dict.fromkeys([*shown, *self.replayed]))
        named = [f"{hex_of(row['sha256'])}@{w}x{h}" for row, (w, h) in zip(self.rows, self.sizes, strict=True)]
        self.texts = {"text": self.captions} if "text" in self.cached else {}
        self.texts |= {"strings": self.book.strings} if self.book.strings else {}
        self.keys = {part: [text_key(text) for text in texts] for part, texts in self.texts.items()}
        self.keys |= dict.fromkeys((part for part in self.cached if part != "text"), named)
        self.pictures = named
        self.read_again = set(needed) - {"text"} - set(self.cached)

    def run(self) -> FeaturesInfo:
        stores = {part: PartStore(self._place(part)) for part in self.keys}
        missing = {part: set(self.keys[part]) - store.rows.keys() for part, store in stores.items()}
        self._check_grids({part for part, keys in missing.items() if keys} | self.read_again)
        self._check_room(missing)
        self.encoders.whole_batches = True
        for part, texts in self.texts.items():
            lacking = [both for both in zip(self.keys[part], texts, strict=True) if both[0] in missing[part]]
            for some in _runs(lacking, TEXTS):
                rows = rows_of(self.encoders.encode(part, [text for _, text in some]))
                for (key, _), row in zip(some, rows, strict=True):
                    stores[part].add(key, row)
            stores[part].flush()
        self._encode_pictures(stores, {part: keys for part, keys in missing.items() if part not in self.texts})
        for store in stores.values():
            store.flush()
        return self._finish(stores)

    def _place(self, part: str) -> Path:
        """Where the rows of a part are kept from run to run, or in the features folder, in which none are taken up."""
        if self.cache:
            return self.cache / part_folder(part, self.made, self.settings)
        shutil.rmtree(self.folder / part, ignore_errors=True)
        return self.folder / part

    def _check_grids(self, parts: set[str]) -> None:
        """Refuse a teacher or vision model that looks more finely than pictures have image tokens."""
        finest = [self.encoders.teacher_model.grid] if "teacher" in parts else []
        finest += [(self.encoders.structure_model.grid,) * 2] if "structure" in parts else []
        factor = self.family.vae_factor
        for width, height in set(self.sizes):
            for patches in finest:
                check_grid(self.family.grid(height // factor, width // factor), patches)

    def _check_room(self, missing: dict[str, set[str]]) -> None:
        """Refuse a disk without room for what is missing, and for all of it where that has to be copied."""
        needed = {part: self._bytes(part, keys) for part, keys in missing.items() if keys}
        total = sum(needed.values())
        listed = ", ".join(f"{part} {_readable(size)}" for part, size in needed.items()) or "all of it is there"
        asked = {self.cache or self.folder: total}
        if self.cache and not links(self.cache, self.folder):
            kept = (path.stat().st_size for part in self.keys for path in self._place(part).glob("*.safetensors"))
            asked[self.folder] = total + sum(kept)
        print(f"features of {len(self.rows)} pictures take about {_readable(total)} ({listed})", flush=True)
        for place in asked:
            free, device = shutil.disk_usage(place).free, place.stat().st_dev
            wanted = sum(size for other, size in asked.items() if other.stat().st_dev == device)
            if wanted > free:
                raise TrainingError(
                    f"features would take about {_readable(wanted)} ({listed}), but {place} has {_readable(free)} "
                    "free; make room, take names out of training.cached, or set training.cache_precision to fp16"
                )

    def _bytes(self, part: str, missing: set[str]) -> int:
        """Bytes that the missing rows take: as a blank picture of the largest size does, and as texts of the fewest
        and most characters do, where rows have the length of their text."""
        if part not in self.texts:
            blank = [Image.new("RGB", max(self.sizes, key=lambda size: size[0] * size[1]))]
            return len(missing) * (_size(self.encoders.encode(part, blank)) + ROW)
        lengths = [len(text) for text in self.texts[part] if text_key(text) in missing]
        ends = [choose(self.texts[part], key=len) for choose in (min, max)]
        least, most = (_size(row) for row in rows_of(self.encoders.encode(part, ends)))
        character = (most - least) / max(len(ends[1]) - len(ends[0]), 1)
        return sum(int(least + character * (length - len(ends[0]))) + ROW for length in lengths)

    def _encode_pictures(self, stores: dict[str, PartStore], missing: dict[str, set[str]]) -> None:
        """Each picture is read once, for all parts that lack its row; runs of pictures of one size go through a model
        together."""
        lacking = {key: number for number, key in enumerate(self.pictures) if any(key in m for m in missing.values())}
        by_size = groupby(lacking.values(), key=lambda number: self.sizes[number])
        batches = [(size, some) for size, numbers in by_size for some in _runs(list(numbers), pictures_at_once(size))]
        for size, batch in track(batches, "encoding pictures", len(batches)):
            images = [fitted(image, size) for image in self.corpus.load([self.order[number] for number in batch])]
            for part, keys in missing.items():
                wanted = [(k, image) for n, image in zip(batch, images, strict=True) if (k := self.pictures[n]) in keys]
                if wanted:
                    rows = rows_of(self.encoders.encode(part, [image for _, image in wanted]))
                    for (key, _), row in zip(wanted, rows, strict=True):
                        stores[part].add(key, row)

    def _finish(self, stores: dict[str, PartStore]) -> FeaturesInfo:
        """Write the corpus, and ``features.json`` last."""
        if self.cache:
            for part, store in stores.items():
                store.link(self.keys[part], self.folder / part)
        (self.folder / CORPUS).write_text(json.dumps(self._corpus(), ensure_ascii=False), "utf-8")
        teacher = self.settings.teacher if self.book.strings else None
        info = FeaturesInfo(
            made_of=self.made,
            images=len(self.rows),
            captions=len(self.captions),
            phrases=len(self.book.strings),
            truncated_captions=None,
            sizes=[(count, *size) for size, count in Counter(self.sizes).items()],
            corpus=digest_file(self.folder / CORPUS),
            cached=self.cached,
            temperature=temperature_of(teacher) if teacher else None,
            rows={part: digest_rows(store.rows[key] for key in self.keys[part]) for part, store in stores.items()},
            alignment={},
        )
        write_info(self.folder, info)
        features = Features(self.folder, self.settings)
        found = {"alignment": features.alignment(REPORTED), "truncated_captions": features.truncated_captions()}
        info = info.model_copy(update=found)
        write_info(self.folder, info)
        return info

    def _corpus(self) -> dict[str, Any]:
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        corpus: dict[str, Any] = {"captions": self.captions, "strings": self.book.strings, "parts": self.book.parts}
        corpus |= {"rows": [numbers[row["text"]] for row in self.rows], "keys": self.pictures}
        corpus["replayed"] = [numbers[caption] for caption in self.replayed]
        if self.read_again:
            # Where pictures lie is named only if training has to read them: it changes nothing else.
            corpus["pictures"] = [{name: row[name] for name in ("file_name", "sha256", "uri")} for row in self.rows]
        return corpus


def _runs(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _readable(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
