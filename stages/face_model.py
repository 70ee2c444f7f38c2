"""A rigid, average 68-point face of our own making, in the world of `model.camera`. numpy only.

How it was made: one half was laid out by hand, in millimetres, from averages of adult faces that
anthropometry publishes (outer eye corners 89 mm apart, nose 52 mm long and 33 mm wide, nasion to chin 117 mm,
mouth 52 mm wide, face 138 mm wide, nasal tip 42 mm before the eye corners), rounded to half a millimetre; the
other half is its mirror. Where iBUG marks a point elsewhere than anthropometry does (eye corners and brows at
their drawn edge, the jaw on the outline of a frontal view), iBUG was followed, by eye, on the two portraits
of the demo. No point was taken from another face model.

The place and the scale are those of the EG3D crop: a least-squares fit of the five points of this face to the
five standard points of the alignment (`stages.crop.STANDARD_FIVE`; residual about 1 mm), then 0.27 world
units for each of theirs and their offset. So the camera of a frontal crop stands near (0, 0, 2.86), which the
25 numbers carry as (0, 0, 2.7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Millimetres: x to the right of the picture, y up, z towards the camera; zero between the outer eye corners.
# (index in the right half, index of its mirror, x, y, z); the two indices are equal on the axis.
_HALF_MM: tuple[tuple[int, int, float, float, float], ...] = (
    (16, 0, 69.0, -3.0, -62.0),  # jaw, from the ear to the chin
    (15, 1, 68.5, -20.0, -58.0),
    (14, 2, 67.0, -37.0, -53.0),
    (13, 3, 64.0, -54.0, -46.0),
    (12, 4, 58.0, -71.0, -35.0),
    (11, 5, 48.0, -86.0, -20.0),
    (10, 6, 34.0, -99.0, -5.0),
    (9, 7, 17.5, -109.0, 6.5),
    (8, 8, 0.0, -112.0, 11.0),
    (26, 17, 58.0, 11.0, -8.0),  # brow, from the temple to the nose
    (25, 18, 51.0, 19.0, 5.0),
    (24, 19, 39.5, 22.0, 14.5),
    (23, 20, 26.5, 20.5, 20.5),
    (22, 21, 15.0, 17.0, 22.5),
    (27, 27, 0.0, 2.0, 18.5),  # ridge of the nose
    (28, 28, 0.0, -9.5, 27.5),
    (29, 29, 0.0, -21.0, 37.0),
    (30, 30, 0.0, -32.5, 46.0),
    (35, 31, 14.5, -41.0, 26.0),  # base of the nose
    (34, 32, 7.0, -43.5, 31.0),
    (33, 33, 0.0, -45.0, 33.5),
    (45, 36, 44.5, 0.5, 0.0),  # eye: outer corner, upper lid, inner corner, lower lid
    (44, 37, 36.5, 5.0, 8.5),
    (43, 38, 27.0, 5.0, 11.5),
    (42, 39, 18.5, -0.5, 9.0),
    (47, 40, 27.5, -3.5, 10.5),
    (46, 41, 36.0, -3.5, 8.0),
    (54, 48, 25.5, -67.5, 14.0),  # outer lips
    (53, 49, 17.0, -62.0, 24.0),
    (52, 50, 7.0, -58.5, 31.0),
    (51, 51, 0.0, -60.0, 32.5),
    (55, 59, 17.0, -74.5, 23.0),
    (56, 58, 7.5, -78.5, 28.0),
    (57, 57, 0.0, -79.5, 29.0),
    (64, 60, 22.0, -67.5, 17.0),  # inner lips
    (63, 61, 8.5, -66.0, 28.0),
    (62, 62, 0.0, -66.5, 29.5),
    (65, 67, 8.5, -69.0, 27.5),
    (66, 66, 0.0, -69.5, 28.5),
)

WORLD_PER_MM = 0.993 * 0.27 / 100
_ORIGIN_MM = (0.0, -31.1, -68.9)

RIGID = np.arange(17, 48)
"""Points that keep their place when a face speaks: brows, nose and eyes; no jaw, no mouth.

The brows stay in although they can rise: without them the points are so flat that pitch becomes noisy."""


def _face_mm() -> NDArray[np.float64]:
    face = np.full((68, 3), np.nan)
    for right, left, x, y, z in _HALF_MM:
        face[left] = (-x, y, z)
        face[right] = (x, y, z)
    assert np.isfinite(face).all()
    return face


def to_world(points_mm: ArrayLike) -> NDArray[np.float64]:
    """[..., 3] millimetres, as in the table above -> world units."""
    return (np.asarray(points_mm, np.float64) - _ORIGIN_MM) * WORLD_PER_MM


LANDMARKS = to_world(_face_mm())
"""float64 [68, 3], world units, iBUG order."""
LANDMARKS.setflags(write=False)


def similarity_3d(
    source: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """(scale, rotation [3, 3], shift [3]) that bring points [N, 3] closest to others (Umeyama, 1991)."""
    centre, goal = source.mean(axis=0), target.mean(axis=0)
    u, spread, vt = np.linalg.svd((target - goal).T @ (source - centre))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((spread * sign).sum() / ((source - centre) ** 2).sum())
    return scale, rotation, goal - scale * rotation @ centre
