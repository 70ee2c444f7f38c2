"""YuNet's face boxes, for backends without a detector of their own. Apache-2.0, one file of 0.3 MB."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from infra import weights
from stages.backends import Detection

LOOK_AT = 40_000                 # px, area: no frame is looked at larger (200 x 200, 267 x 150)
OVERLAP = 0.3                    # of two boxes, from which on they are one face


class YuNet:
    """Boxes from forehead to chin. Of faces 20 px wide, as looked at, 98 % are found, 84 % of 14 px."""

    possible_above: ClassVar[float] = 0.4    # below: shadows and folds
    believe_above: ClassVar[float] = 0.7

    def __init__(self) -> None:
        path = weights.require("yunet")
        self._size = (200, 200)
        told = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)     # of a target nobody chose
        self._net = cv2.FaceDetectorYN.create(str(path), "", self._size, self.possible_above, OVERLAP)
        cv2.utils.logging.setLogLevel(told)

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        """Faces in a frame, uint8 [H, W, 3] RGB, best score first."""
        height, width = frame.shape[:2]
        scale = min((LOOK_AT / (height * width)) ** 0.5, 1.0)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        if size != (width, height):
            frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        _, rows = self._net.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        x, y = width / size[0], height / size[1]
        found = [
            Detection((l_ * x, t * y, (l_ + w) * x, (t + h) * y), score)
            for l_, t, w, h, score in rows[:, [0, 1, 2, 3, 14]].tolist()
        ]
        return sorted(found, key=lambda d: (-d.score, d.box))
