"""Near-duplicates by perceptual hash, and a split that no group of them straddles."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from components.snapshot_data.metadata import SPLITS
from lineage.pictures import FORMATS, HASH_SIDE, phash

MOST_PIXELS = 2**26
"""Images of more pixels have no perceptual hash: they would fill the memory."""
PAIRS_AT_ONCE = 2**20


def perceptual_hash(content: bytes) -> str | None:
    """See `phash`; None: it does not decode."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MOST_PIXELS:
                return None
            image.draft("L", (2 * HASH_SIDE, 2 * HASH_SIDE))
            return phash(image)
    except Exception:  # decoders raise whatever a malformed file leads them to; validation says what is wrong
        return None


def near_duplicates(hashes: Any, bits: int) -> Any:
    """Groups of hashes that are linked by steps of at most ``bits`` differing bits.

    Of ``bits + 2`` bands two hashes that near share at least two: so only hashes that share a pair of bands are
    compared, which for unlike images is next to nobody.

    Args:
        hashes: (N,) uint64.

    Returns:
        (N,) integers, equal within a group.
    """
    import numpy as np

    known, back = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(known))
    edges: list[Any] = []
    bands = np.array_split(np.arange(64, dtype=np.uint64), bits + 2)
    masks = [np.bitwise_or.reduce(np.uint64(1) << band) for band in bands]
    for first, second in combinations(masks, 2):
        keys = known & (first | second)
        order = np.argsort(keys, kind="stable")
        keys, offset = keys[order], 1
        left = np.flatnonzero(keys[1:] == keys[:-1])
        while len(left):
            one, two = order[left], order[left + offset]
            near = np.bitwise_count(known[one] ^ known[two]) <= bits
            near &= groups[one] != groups[two]
            edges.append(np.stack([one[near], two[near]]))
            if sum(edge.shape[1] for edge in edges) > PAIRS_AT_ONCE:
                groups, edges = _joined(groups, edges), []
            offset += 1
            left = left[left + offset < len(keys)]
            left = left[keys[left] == keys[left + offset]]
        groups, edges = _joined(groups, edges), []
    return groups[back]


def _joined(groups: Any, edges: Sequence[Any]) -> Any:
    import numpy as np
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    one, two = np.concatenate([*edges, np.stack([np.arange(len(groups)), groups])], axis=1)
    links = coo_array((np.ones(len(one), dtype=np.int8), (one, two)), shape=(len(groups), len(groups)))
    _, first, group = np.unique(connected_components(links, directed=False)[1], return_index=True, return_inverse=True)
    return first[group]  # the first of a group stands for it


def assign_splits(
    groups: Sequence[int], digests: Sequence[str], given: Sequence[str | None], share: float
) -> tuple[list[str], dict[int, int]]:
    """A split for each image, the same for all of a group, whatever else is in the data.

    A group goes where a row of it says, or is drawn by its smallest digest. Where rows say different things, the last
    of train, validation and test counts, and images that were to go elsewhere are leaks.

    Args:
        groups: (N,), equal for near-duplicates.
        digests: (N,), of the images.
        given: (N,), the split that the row states.

    Returns:
        (N,) splits, and leak -> an image of its group that is where the group goes.
    """
    members: dict[int, list[int]] = {}
    for image, group in enumerate(groups):
        members.setdefault(group, []).append(image)
    splits, leaks = [SPLITS[0]] * len(groups), {}
    for images in members.values():
        stated = [image for image in images if given[image]]
        last = max(stated, key=lambda image: SPLITS.index(given[image] or ""), default=None)
        split = given[last] if last is not None else _drawn(min(digests[image] for image in images), share)
        for image in images:
            splits[image] = split or SPLITS[0]
            if last is not None and given[image] not in (None, split):
                leaks[image] = last
    return splits, leaks


def _drawn(digest: str, share: float) -> str:
    number = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big")
    return SPLITS[1] if number < share * 2**64 else SPLITS[0]
