"""Judge how good the face in a picture is: YuNet finds it, eDifFIQA (Ž. Babnik et al., 2024) judges it.

`python score.py [--weights FOLDER] [--sure SHARE] REQUEST RESPONSE`

`face_quality` is about 0 to 1, of the largest face. A picture in which no face is found scores 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from contract import Asked, Refused, answer, open_picture
from numpy.typing import NDArray

FINDER, JUDGE = "face_detection_yunet_2023mar.onnx", "ediffiqa_tiny_jun2024.onnx"
LOOKED_AT = 320
"""Longest side in pixels at which faces are looked for: the finder knows faces of 10 to 300 pixels."""
SIDE = 112
EYES_NOSE_MOUTH = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where the judge wants a face's five points, in a picture of `SIDE` pixels: as ArcFace has them."""

Pixels = NDArray[np.uint8]


class FaceQuality:
    """Both networks.

    Args:
        sure: how sure the finder has to be of a face.

    Raises:
        Refused: one of them is not there, or is no network that OpenCV reads.
    """

    def __init__(self, folder: Path, sure: float) -> None:
        cv2.setNumThreads(1)
        for name in (FINDER, JUDGE):
            if not (folder / name).is_file():
                raise Refused(f"there is no {name}")
        self._finder = cv2.FaceDetectorYN.create(str(folder / FINDER), "", (LOOKED_AT, LOOKED_AT), sure)
        self._judge = cv2.dnn.readNetFromONNX(str(folder / JUDGE))

    def of(self, picture: Pixels) -> float:
        """The quality of the largest face in a picture (H, W, 3), BGR; 0 where there is none."""
        points = self._find(picture)
        if points is None:
            return 0.0
        moved, _ = cv2.estimateAffinePartial2D(points, np.array(EYES_NOSE_MOUTH, dtype=np.float32), method=cv2.LMEDS)
        if moved is None:  # the five points are one
            return 0.0
        face = cv2.warpAffine(picture, moved, (SIDE, SIDE))
        blob = cv2.dnn.blobFromImage(face, 1 / 127.5, (SIDE, SIDE), (127.5, 127.5, 127.5), swapRB=True)
        self._judge.setInput(blob)
        return float(np.asarray(self._judge.forward()).reshape(-1)[0])

    def _find(self, picture: Pixels) -> NDArray[np.float32] | None:
        """(5, 2): eyes, nose and corners of the mouth of the largest face."""
        height, width = picture.shape[:2]
        scale = min(1.0, LOOKED_AT / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        self._finder.setInputSize(size)
        _, faces = self._finder.detect(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        if faces is None or not len(faces):
            return None
        largest = max(faces, key=lambda face: float(face[2] * face[3]))
        points = largest[4:14].reshape(5, 2) * (width / size[0], height / size[1])
        return np.asarray(points, dtype=np.float32)


def main() -> None:
    """Answer a request."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--sure", type=float, default=0.6)
    parser.add_argument("request", type=Path)
    parser.add_argument("response", type=Path)
    said = parser.parse_args()
    try:
        quality = FaceQuality(said.weights, said.sure)
    except (Refused, cv2.error) as error:
        sys.exit(f"the networks in {said.weights} do not load: {error}")

    def judge(asked: Asked) -> dict[str, float]:
        return {"face_quality": quality.of(np.asarray(open_picture(asked.file))[:, :, ::-1].copy())}

    answer(said.request, said.response, judge, ("opencv-python-headless", "numpy", "pillow"))


if __name__ == "__main__":
    main()
