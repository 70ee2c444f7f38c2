"""Affine maps of points and pictures: [..., 2, 3] matrices that take (x, y, 1) to px of another picture.

Coordinates: px, x right, y down, the centre of the top left pixel is (0, 0), as everywhere in a `Clip`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def apply(transforms: ArrayLike, points: ArrayLike) -> Array:
    """Map [..., N, 2] by [..., 2, 3]."""
    matrix, xy = np.asarray(transforms, np.float64), np.asarray(points, np.float64)
    return xy @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def invert(transforms: ArrayLike) -> Array:
    """The inverse of [..., 2, 3]."""
    matrix = np.asarray(transforms, np.float64)
    linear = np.asarray(np.linalg.inv(matrix[..., :2]), np.float64)
    return np.concatenate([linear, -linear_apply(linear, matrix[..., 2])[..., None]], axis=-1)


def linear_apply(linear: Array, vectors: Array) -> Array:
    """[..., 2, 2] times [..., 2], without a shift."""
    return (linear @ vectors[..., None])[..., 0]


def warp(frame: NDArray[np.uint8], transform: Array, size: int, oversample: int) -> NDArray[np.uint8]:
    """Cut uint8 [size, size, 3] out of a frame; what lies outside it is its mirror image.

    `oversample` times finer samples are averaged, so that a large face does not alias when it shrinks.
    Bilinear, as the published chain is where it enlarges.
    """
    import cv2

    fine = oversample * transform + [[0, 0, (oversample - 1) / 2]] * 2
    side = size * oversample
    picture = cv2.warpAffine(
        frame, fine, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    if oversample > 1:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(picture, np.uint8)
