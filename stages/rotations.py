"""Rotations of cameras: angles, Gaussians over time, means. [..., 3, 3], camera to world, OpenCV axes.

Angles, for reading: with positive yaw the camera stands on the +x side, so that the face in the picture looks
past it to the left; with positive pitch it stands above the face; with positive roll it is turned
counter-clockwise, as its user sees it, so that the face in the picture leans clockwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.smooth import low_pass

Array = NDArray[np.float64]

UPRIGHT = np.diag([1.0, -1.0, -1.0])         # OpenCV axes of a camera in front of the face, looking at it


def turn(start: int, end: int, angle_rad: ArrayLike) -> Array:
    """[...] radians -> [..., 3, 3]: the rotation that takes axis `start` towards axis `end`."""
    angle = np.asarray(angle_rad, np.float64)
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[...] = np.eye(3)
    matrix[..., start, start] = matrix[..., end, end] = np.cos(angle)
    matrix[..., end, start], matrix[..., start, end] = np.sin(angle), -np.sin(angle)
    return matrix


def rotation_from_euler(yaw_deg: ArrayLike, pitch_deg: ArrayLike, roll_deg: ArrayLike) -> Array:
    """[...] degrees -> [..., 3, 3] camera to world."""
    yaw, pitch, roll = (np.deg2rad(np.asarray(angle, np.float64)) for angle in (yaw_deg, pitch_deg, roll_deg))
    return turn(2, 0, yaw) @ turn(2, 1, pitch) @ turn(0, 1, roll) @ UPRIGHT


def euler_from_rotation(rotations: ArrayLike) -> tuple[Array, Array, Array]:
    """Inverse of `rotation_from_euler`: [..., 3, 3] -> yaw, pitch, roll [...] in degrees."""
    axes = np.asarray(rotations, np.float64) @ UPRIGHT             # right, up, backward
    backward = axes[..., :, 2]
    yaw = np.arctan2(backward[..., 0], backward[..., 2])
    pitch = np.arcsin(np.clip(backward[..., 1], -1, 1))
    roll = np.arctan2(axes[..., 1, 0], axes[..., 1, 1])
    return np.rad2deg(yaw), np.rad2deg(pitch), np.rad2deg(roll)


def nearest_rotation(matrices: ArrayLike) -> Array:
    """[..., 3, 3] of any matrices -> the rotations nearest to them; of a mean of rotations, their mean."""
    u, _, vt = np.linalg.svd(np.asarray(matrices, np.float64))
    u[..., -1] *= np.linalg.det(u @ vt)[..., None]
    return np.asarray(u @ vt, np.float64)


def smooth_rotations(rotations: Array, sigma_s: float, fps: float) -> Array:
    """Gaussian over time on the rotation group, [T, 3, 3]: the rotation nearest to the weighted mean."""
    return nearest_rotation(low_pass(rotations, sigma_s, fps))


def angle_between(a: ArrayLike, b: ArrayLike) -> Array:
    """[..., 3, 3] twice -> [...] degrees of the turn from one to the other."""
    between = np.swapaxes(np.asarray(a, np.float64), -1, -2) @ np.asarray(b, np.float64)
    sine = np.linalg.norm(between - np.swapaxes(between, -1, -2), axis=(-2, -1)) / np.sqrt(8)
    cosine = (np.trace(between, axis1=-2, axis2=-1) - 1) / 2
    return np.asarray(np.rad2deg(np.arctan2(sine, cosine)), np.float64)
