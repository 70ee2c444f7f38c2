"""Perspective-n-point: the camera from where rigid points of a known face lie in the crop.

The lens is known (focal length 4.2647 crop sides, centred), so six numbers per frame are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.camera import FOCAL
from stages.rotations import UPRIGHT, rotation_from_euler

Array = NDArray[np.float64]

CROP_DISTANCE = 2.86                         # world units: where the camera of a crop really stands
SIDE_VIEWS_DEG = (-60.0, 60.0)               # where a second search starts ...
POOR = 0.01                                  # ... when the first one ends with this error, in crop sides


def fit_poses(points: ArrayLike, model: ArrayLike, size: int) -> tuple[Array, Array, Array]:
    """Points [T, R, 2] in crop px, of a model [R, 3] in world units, as seen in a crop of `size` px.

    Returns rotation [T, 3, 3] camera to world, position [T, 3] and error [T]: the root mean square distance
    of the reprojected points, in crop sides.
    """
    seen = np.asarray(points, np.float64)
    known = np.ascontiguousarray(model, np.float64)
    middle = (size - 1) / 2
    lens = np.array([[FOCAL * size, 0, middle], [0, FOCAL * size, middle], [0, 0, 1.0]])
    poses = [_fit(np.ascontiguousarray(frame), known, lens) for frame in seen]
    errors = np.array([error for _, _, error in poses]) / size
    return np.stack([r for r, _, _ in poses]), np.stack([p for _, p, _ in poses]), errors


def _fit(seen: Array, model: Array, lens: Array) -> tuple[Array, Array, float]:
    """Rotation, position, error in px, of one frame.

    A face is nearly flat, so a free fit has a mirrored second solution; starting from a frontal camera at the
    crop's distance keeps to the right one. Every frame starts there, not at its neighbour, so that one bad
    frame cannot lead the rest astray. A head in profile is too far from the front to be found from there.
    """
    best = _search(seen, model, lens, UPRIGHT)
    if best[2] > POOR * 2 * lens[0, 2] or not _faces_us(best):
        others = [_search(seen, model, lens, rotation_from_euler(yaw, 0, 0)) for yaw in SIDE_VIEWS_DEG]
        best = min([best, *others], key=lambda pose: (not _faces_us(pose), pose[2]))
    return best


def _search(seen: Array, model: Array, lens: Array, start: Array) -> tuple[Array, Array, float]:
    import cv2

    turn, shift = cv2.Rodrigues(start.T)[0], np.array([[0.0], [0.0], [CROP_DISTANCE]])
    _, turn, shift = cv2.solvePnP(model, seen, lens, None, turn, shift, True, cv2.SOLVEPNP_ITERATIVE)
    projected = cv2.projectPoints(model, turn, shift, lens, None)[0].reshape(-1, 2)
    rotation = np.asarray(cv2.Rodrigues(turn)[0], np.float64)
    error = float(np.sqrt(((projected - seen) ** 2).sum(axis=-1).mean()))
    return rotation.T, (-rotation.T @ shift).ravel(), error


def _faces_us(pose: tuple[Array, Array, Any]) -> bool:
    """Whether the camera looks at the face from the front."""
    return bool((pose[0] @ UPRIGHT)[2, 2] > 0)
