"""FAN's 68 points (Bulat and Tzimiropoulos, 2017) by the `face-alignment` library, on faces that YuNet finds.

The library is BSD-3-Clause; its network was trained on 300W-LP, whose pictures are for research only. It
looks for the network's file in $TORCH_HOME/hub/checkpoints and would download it unasked; here a missing file
is an error. It opens the file with `weights_only`, so nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from infra import weights
from infra.weights import WeightsError
from stages import face_model
from stages.backends import Box, Detection
from stages.backends.yunet import YuNet

# The library answers in whole pixels of the picture it is given, and its heat maps are finer than that on a
# small face. So every face is shown to it on a tile of its own, which the network sees as 256 px square.
TILE = 512                       # px, side
BATCH = 16                       # faces in one pass of the network
# The network's square, as the library takes it from YuNet's box of width w and height h: (w + h) * 200 / 165
# wide, its centre 0.12 h above the box's.
SQUARE, RAISED = 200 / 165, 0.12
# Side of the box that names a tile to the library, which takes it for its own detector's: the divisor is 195.
TILE_BOX = TILE * 195 / 200 / 2
# YuNet's box against the bounding box of 68 points, in the geometric mean of its sides: median of 370 frames.
BOX_SHIFT = (0.0, -0.179)
BOX_SIZE = (0.965, 1.347)


class FanFaces:
    """`FaceBackend`: 68 points, found in every frame by itself; on a GPU when the worker has one."""

    name: ClassVar[str] = "fan"
    believe_above: ClassVar[float] = YuNet.believe_above
    smallest_px: ClassVar[float] = 20.0
    points68: ClassVar[NDArray[np.intp] | None] = None
    follows: ClassVar[bool] = False

    def __init__(self) -> None:
        self._detector = YuNet()
        self._library = _library()

    def start(self) -> None:
        """It looks at every frame by itself."""

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        return self._detector.detect(frame)

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        points: NDArray[np.float32] = self.landmarks_many([frame], [box])[0]
        return points

    def landmarks_many(
        self, frames: Sequence[NDArray[np.uint8]], boxes: Sequence[Box]
    ) -> NDArray[np.float32]:
        """float32 [N, 68, 2] of N frames with one box each, px of the frame, in one pass per 16 of them."""
        matrices = np.stack([_to_tile(box) for box in boxes])
        sheet = np.concatenate([_tile(f, m) for f, m in zip(frames, matrices, strict=True)], axis=1)
        found = self._library.get_landmarks_from_image(sheet, detected_faces=_tile_boxes(len(boxes)))
        points = np.stack(found).astype(np.float64)
        points[..., 0] -= TILE * np.arange(len(boxes))[:, None]
        points = (points - matrices[:, None, :, 2]) / matrices[:, None, 0, :1]
        return np.asarray(points, np.float32)

    def box(self, landmarks: NDArray[np.float32]) -> Box:
        low, high = landmarks.min(axis=0), landmarks.max(axis=0)
        extent = float(np.sqrt(np.prod(high - low)))
        x, y = (low + high) / 2 + extent * np.array(BOX_SHIFT)
        half_x, half_y = extent * np.array(BOX_SIZE) / 2
        return (float(x - half_x), float(y - half_y), float(x + half_x), float(y + half_y))

    @classmethod
    def rigid(cls) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        return face_model.RIGID, face_model.LANDMARKS[face_model.RIGID]


def _library() -> Any:
    """The library's object, with the network loaded. Raises ValueError or WeightsError with the cure."""
    path = weights.require("fan")
    try:
        import face_alignment
        import torch
    except ImportError as error:
        raise ValueError(f"backend fan: {error}; `make setup` installs it") from None
    _check(path)
    return face_alignment.FaceAlignment(
        face_alignment.LandmarksType.TWO_D,
        device="cuda" if torch.cuda.is_available() else "cpu",
        face_detector="folder",                  # the one without a network: it is told where the faces are
        compile=False,                           # needs a C++ compiler, and minutes
        max_batch_size=BATCH,
    )


def _check(path: Path) -> None:
    """Raises WeightsError, naming the file, unless it holds FAN's last layer."""
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        shape = tuple(held["l3.weight"].shape)
    except weights.UNREADABLE:
        shape = ()
    if shape != (68, 256, 1, 1):
        raise WeightsError(f"weights file {path}: not FAN's network of 68 points; remove it")


def _to_tile(box: Box) -> NDArray[np.float64]:
    """[2, 3]: px of the frame to px of a tile."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = TILE / max((width + height) * SQUARE, 1.0)
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2 - RAISED * height])
    return np.concatenate([np.eye(2) * scale, (TILE / 2 - scale * centre)[:, None]], axis=1)


def _tile(frame: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    shrink = matrix[0, 0]
    if shrink < 0.5:                             # the warp below reads four pixels only
        size = [max(round(n * 2 * shrink), 1) for n in frame.shape[1::-1]]
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        matrix = np.concatenate([np.eye(2) / 2, matrix[:, 2:]], axis=1)
    return np.asarray(cv2.warpAffine(frame, matrix, (TILE, TILE), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _tile_boxes(count: int) -> list[NDArray[np.float64]]:
    """What makes the library's square each of `count` tiles side by side."""
    half = TILE_BOX / 2
    # Half a pixel keeps its whole pixels from being the ones below.
    x, y = TILE / 2 + 0.5, TILE / 2 + 0.5 + 0.12 * TILE_BOX
    return [np.array([x + TILE * n - half, y - half, x + TILE * n + half, y + half]) for n in range(count)]
