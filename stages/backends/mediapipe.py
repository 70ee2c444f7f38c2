"""MediaPipe's mesh of 478 points, followed from frame to frame, on faces that YuNet finds. Apache-2.0.

The mesh is steady, because its tracker looks where the face was, and filters over time. It is shown a window
around the face: in a whole frame it misses faces smaller than an eighth of it. The window stays where it is
while the face is well inside, since the tracker would take a window that moves for a face that does.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra import weights
from stages import face_model
from stages.backends import Box, Detection
from stages.backends.yunet import YuNet

# iBUG's 68 among the 478, chosen by eye. The jaw is another curve: iBUG's follows the outline of the picture,
# this one stays on the head. The outer corners of the eyes (130, 359) are one ring outside the mesh's own
# (33, 263), where annotators put them: measured on 29 people, crops by these points are 0.7 % smaller than by
# dlib's, by the others 1.0 % larger.
POINTS_68 = np.array([
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305,
    130, 160, 158, 133, 153, 144, 362, 385, 387, 359, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
])  # fmt: skip
# Points that keep their place on the skull when a face speaks.
RIGID = np.array([
    4, 6, 10, 33, 54, 67, 117, 119, 121, 127, 129, 132, 133, 136, 143, 147, 198, 205, 263, 284, 297, 346, 348,
    350, 356, 358, 361, 362, 365, 372, 376, 420, 425,
])  # fmt: skip

STEP_MS = 33                     # between two frames, for the tracker's filter: near enough at any frame rate
# In sides of the face's box:
WINDOW = 3.0                     # side of the window
MARGIN = 0.4                     # the window moves when the face comes so near to its edge
ELSEWHERE = 0.5                  # the points so far away are those of another face
# YuNet's box against the bounding box of the points, in its width and height: median of 470 frames.
BOX_SHIFT = (0.0, -0.072)
BOX_SIZE = (0.983, 1.154)


class MediaPipeFaces:
    """`FaceBackend`: 478 points (`Clip.mesh`), of which 68 are near iBUG's."""

    name: ClassVar[str] = "mediapipe"
    believe_above: ClassVar[float] = YuNet.believe_above
    smallest_px: ClassVar[float] = 20.0
    points68: ClassVar[NDArray[np.intp] | None] = POINTS_68
    follows: ClassVar[bool] = True

    def __init__(self) -> None:
        self._trackers: list[Any] = []           # the one in use, if any
        # Made before mediapipe is imported, so that it runs after mediapipe has said goodbye at exit: closing
        # a tracker earlier or later than that complains.
        weakref.finalize(self, _close, self._trackers)
        self._library = _library()
        self._detector = YuNet()
        self._model = weights.require("mediapipe")
        self._open()                             # what is wrong with the installation shows here
        self.start()

    def start(self) -> None:
        _close(self._trackers)
        self._last: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        return self._detector.detect(frame)

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        if self._last is not None and self._last[0] is frame and self._agrees(self._last[1], box):
            return self._last[1]
        if not self._trackers or not _holds(self._window, box, frame):
            self._look_at(frame, box)
        points = self._track(frame)
        if not self._agrees(points, box):
            self._look_at(frame, box)
            points = self._track(frame)
        if points is None or not self._agrees(points, box):
            points = np.full((478, 2), np.nan, np.float32)
        self._last = frame, points
        return points

    def box(self, landmarks: NDArray[np.float32]) -> Box:
        (left, top), (right, bottom) = landmarks.min(axis=0).tolist(), landmarks.max(axis=0).tolist()
        width, height = right - left, bottom - top
        x, y = (left + right) / 2 + BOX_SHIFT[0] * width, (top + bottom) / 2 + BOX_SHIFT[1] * height
        half_x, half_y = BOX_SIZE[0] * width / 2, BOX_SIZE[1] * height / 2
        return (x - half_x, y - half_y, x + half_x, y + half_y)

    @classmethod
    def rigid(cls) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        return RIGID, canonical()[RIGID]

    def _agrees(self, points: NDArray[np.float32] | None, box: Box) -> bool:
        """Whether the points are those of the face in `box`."""
        if points is None or np.isnan(points[0, 0]):
            return False
        own = self.box(points)
        apart = max(abs(own[0] + own[2] - box[0] - box[2]), abs(own[1] + own[3] - box[1] - box[3])) / 2
        return apart < ELSEWHERE * _side(box)

    def _look_at(self, frame: NDArray[np.uint8], box: Box) -> None:
        """A window around `box`, and a tracker that knows nothing of the one before."""
        _close(self._trackers)
        self._window = _window(frame, box)
        self._open()

    def _open(self) -> None:
        vision = self._library.tasks.vision
        options = vision.FaceLandmarkerOptions(
            base_options=self._library.tasks.BaseOptions(model_asset_path=str(self._model)),
            running_mode=vision.RunningMode.VIDEO,
        )
        try:
            with _silence():
                self._trackers.append(vision.FaceLandmarker.create_from_options(options))
        except OSError as error:                 # its shared object, which is loaded now, misses another one
            cure = "on Debian: apt-get install libegl1 libgles2"
            raise ValueError(f"backend mediapipe: {error}; {cure}") from None
        self._times = itertools.count(0, STEP_MS)

    def _track(self, frame: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """The points of the face in the window [478, 2], px of the frame; None when there is none."""
        left, top, right, bottom = self._window
        inside = np.ascontiguousarray(frame[top:bottom, left:right])
        picture = self._library.Image(self._library.ImageFormat.SRGB, inside)
        found = self._trackers[0].detect_for_video(picture, next(self._times)).face_landmarks
        if not found:
            return None
        points = np.array([(p.x, p.y) for p in found[0]])
        # Its 0 and 1 are the edges of the picture; our first pixel's centre is at 0.
        return (points * (right - left, bottom - top) + (left - 0.5, top - 0.5)).astype(np.float32)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on stderr meanwhile: every new tracker says the same three lines there, unasked."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _close(trackers: list[Any]) -> None:
    while trackers:
        trackers.pop().close()


def canonical() -> NDArray[np.float64]:
    """MediaPipe's average head, float64 [468, 3], in the world of `stages.face_model`.

    Moved there by the similarity that brings brows, nose and eyes closest to those of our own face.
    Raises WeightsError when its file is missing.
    """
    path = weights.require("canonical-face")
    lines = path.read_text(encoding="ascii").splitlines()
    head = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], np.float64)
    ours = face_model.RIGID
    scale, turn, shift = face_model.similarity_3d(head[POINTS_68[ours]], face_model.LANDMARKS[ours])
    return scale * head @ turn.T + shift


def _library() -> Any:
    """mediapipe. Raises ValueError with the cure when it, or a library of the system, is missing."""
    try:
        import mediapipe
    except ImportError as error:
        raise ValueError(f"backend mediapipe: {error}; `make setup` installs it") from None
    return mediapipe


def _side(box: Box) -> float:
    return max(math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0.0)), 1.0)


def _window(frame: NDArray[np.uint8], box: Box) -> tuple[int, int, int, int]:
    """Whole pixels of the frame around `box`: left, top, right, bottom."""
    height, width = frame.shape[:2]
    half = WINDOW * _side(box) / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top = min(max(round(x - half), 0), width - 2), min(max(round(y - half), 0), height - 2)
    return left, top, min(max(round(x + half), left + 2), width), min(max(round(y + half), top + 2), height)


def _holds(window: tuple[int, int, int, int], box: Box, frame: NDArray[np.uint8]) -> bool:
    """Whether the face is well inside the window, wherever the frame goes on beyond it, and not too small."""
    height, width = frame.shape[:2]
    margin = MARGIN * _side(box)
    inside = (
        (window[0] == 0 or box[0] - window[0] > margin)
        and (window[1] == 0 or box[1] - window[1] > margin)
        and (window[2] == width or window[2] - box[2] > margin)
        and (window[3] == height or window[3] - box[3] > margin)
    )
    return inside and max(window[2] - window[0], window[3] - window[1]) < 2 * WINDOW * _side(box)
