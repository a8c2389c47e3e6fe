"""Whether a face is there: a presence check by BlazeFace (short range), not more.

    detector = FaceDetector(threshold=0.3)
    detector.find(tiles)        # Faces(count, score, share), each (N,)

Tiles of 64 pixels are looked at four to a frame, which costs a quarter of one to a frame. `docs/data.md` states the
error rates of both.

The network's description: Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs",
2019, https://arxiv.org/abs/1907.05047. Its weights (Apache-2.0) lie in the wheel of mediapipe, which brings much that
is not needed here: ``make install`` takes them out of the wheel, and `python -m components.validate_data.faces` checks
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.validate_data.errors import DataValidationError
from lineage.digests import digest_bytes

MODEL = Path(__file__).with_name("face_detection_short_range.tflite")
DIGEST = "sha256:bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"
FRAME = 128
"""Side of what the network takes, pixels."""
OVERLAP = 0.3
"""Boxes that overlap more than this (intersection over union) are one face."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Faces:
    """What was seen in N pictures."""

    count: npt.NDArray[np.int64]
    score: Floats
    """Of the face that is surest, 0 to 1; also where it is below the threshold."""
    share: Floats
    """Of the frame that the box of the largest face takes, 0 to 1; 0 where there is none."""

    def put(self, places: list[int], seen: Faces) -> None:
        """What was seen in the pictures at ``places`` is ``seen`` instead."""
        self.count[places], self.score[places], self.share[places] = seen.count, seen.score, seen.share


class FaceDetector:
    """BlazeFace on tiles of 64 or 128 pixels; one to a process."""

    def __init__(self, threshold: float) -> None:
        """Load the network.

        Args:
            threshold: score from which on a box counts as a face.

        Raises:
            DataValidationError: the runtime or the weights are not installed.
        """
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise DataValidationError(
                f"faces cannot be counted: {error}; run make install, or set validation.faces to false"
            ) from error
        self.threshold = threshold
        self._network: Any = Interpreter(model_content=weights(), num_threads=1)
        self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]["index"]
        self._outputs = [one["index"] for one in self._network.get_output_details()]

    def find(self, tiles: npt.NDArray[np.uint8]) -> Faces:
        """Look for faces.

        Args:
            tiles: (N, S, S, 3), RGB, S 64 or 128.
        """
        number, side = tiles.shape[:2]
        across = FRAME // side
        faces = Faces(np.zeros(number, np.int64), np.zeros(number, np.float32), np.zeros(number, np.float32))
        for start in range(0, number, across**2):
            boxes, scores = self._boxes(_frame(tiles[start : start + across**2], across))
            cell = np.clip(boxes[:, :2] * across, 0, across - 1).astype(int) @ np.array([1, across])
            for inside in range(min(across**2, number - start)):
                mine = cell == inside
                found = _distinct(boxes[mine], scores[mine], self.threshold)
                faces.count[start + inside] = len(found)
                faces.score[start + inside] = scores[mine].max(initial=0)
                areas = found[:, 2:].clip(0, 1 / across).prod(axis=1) * across**2
                faces.share[start + inside] = areas.max(initial=0)
        return faces

    def _boxes(self, frame: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Boxes (896, 4) as centre x, y, width, height in frames, and scores (896,)."""
        self._network.set_tensor(self._input, frame[None].astype(np.float32) / np.float32(127.5) - 1)
        self._network.invoke()
        told, logits = (self._network.get_tensor(index)[0] for index in self._outputs)
        boxes = told[:, :4] / FRAME
        boxes[:, :2] += _anchors()
        return boxes, 1 / (1 + np.exp(-logits[:, 0].clip(-80, 80)))


def weights() -> bytes:
    """The network, checked.

    Raises:
        DataValidationError: it is missing or another one.
    """
    content = MODEL.read_bytes() if MODEL.is_file() else b""
    if digest_bytes(content) != DIGEST:
        raise DataValidationError(
            f"{MODEL} is not the face detector ({DIGEST}); delete it and run make install, or set validation.faces to "
            "false"
        )
    return content


def _frame(tiles: npt.NDArray[np.uint8], across: int) -> npt.NDArray[np.uint8]:
    """Tiles (n, S, S, 3) side by side as one (128, 128, 3), grey where there is none."""
    side = tiles.shape[1]
    frame = np.full((across, side, across, side, 3), 128, np.uint8)
    for number, tile in enumerate(tiles):
        frame[number // across, :, number % across] = tile
    return frame.reshape(FRAME, FRAME, 3)


def _distinct(boxes: Floats, scores: Floats, threshold: float) -> Floats:
    """The boxes from the threshold on, the best of each group of overlapping ones."""
    sure = scores >= threshold
    rest = boxes[sure][np.argsort(-scores[sure])]
    kept = []
    while len(rest):
        kept.append(rest[0])
        low = np.maximum(rest[:, :2] - rest[:, 2:] / 2, rest[0, :2] - rest[0, 2:] / 2)
        high = np.minimum(rest[:, :2] + rest[:, 2:] / 2, rest[0, :2] + rest[0, 2:] / 2)
        shared = (high - low).clip(0).prod(axis=1)
        union = rest[:, 2:].prod(axis=1) + rest[0, 2:].prod() - shared
        others = shared <= OVERLAP * union
        others[0] = False
        rest = rest[others]
    return np.array(kept, np.float32).reshape(-1, 4)


@cache
def _anchors() -> Floats:
    """Centres of the network's 896 boxes: two in each of 16 x 16 cells, six in each of 8 x 8."""
    centres = []
    for cells, boxes in ((16, 2), (8, 6)):
        middle = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(middle, middle, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), boxes, axis=0))
    return np.concatenate(centres).astype(np.float32)


if __name__ == "__main__":
    weights()
