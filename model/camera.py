"""Cameras: the one file that knows the 25 numbers. numpy only, so a data worker needs no torch.
World: right-handed, +y up, the face at the origin looking along +z; the unit is the radius's (2.7 to the
camera). Camera: OpenCV, x right, y down, z forward. Intrinsics are divided by the image side (focal 4.2647,
centre 0.5). The 25 numbers are the 4 x 4 camera-to-world matrix and the 3 x 3 intrinsics, both row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

FOCAL = 4.2647  # FFHQ crop of EG3D: 2985.29 px / 700 px
RADIUS = 2.7
CAMERA_DIM = 25
FLIP_NEGATES = (1, 2, 3, 4, 8)  # entries of the 25 that change sign in a mirror image


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One camera (or a batch: every part may carry leading dimensions)."""

    rotation: Array
    """[..., 3, 3] camera to world; its columns are the camera's x (right), y (down), z (forward) axes."""
    position: Array
    """[..., 3] in world units."""
    intrinsics: Array
    """[..., 3, 3], divided by the image side."""

    def encode(self) -> NDArray[np.float32]:
        """[..., 25]"""
        lead = self.rotation.shape[:-2]
        pose = np.zeros((*lead, 4, 4))
        pose[..., :3, :3] = self.rotation
        pose[..., :3, 3] = self.position
        pose[..., 3, 3] = 1
        parts = [pose.reshape(*lead, 16), np.asarray(self.intrinsics).reshape(*lead, 9)]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    @staticmethod
    def decode(cameras: ArrayLike) -> Camera:
        """The inverse of `encode` for [..., 25]."""
        c = check_cameras(cameras)
        pose = c[..., :16].reshape(*c.shape[:-1], 4, 4)
        intrinsics = c[..., 16:].reshape(*c.shape[:-1], 3, 3)
        return Camera(rotation=pose[..., :3, :3], position=pose[..., :3, 3], intrinsics=intrinsics)


def intrinsics(focal: float = FOCAL) -> Array:
    """[3, 3] for a centred square image; `focal` in image sides."""
    return np.array([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1.0]])


def look_at(position: ArrayLike, target: ArrayLike, *, focal: float = FOCAL) -> Camera:
    """A camera at `position` [3] that looks at `target` [3], upright (+y is up)."""
    origin = np.asarray(position, dtype=np.float64)
    forward = np.asarray(target, dtype=np.float64) - origin
    length = np.linalg.norm(forward)
    if length < 1e-9:
        raise ValueError(f"the camera position {origin.tolist()} is its target; move one of them")
    forward /= length
    right = np.cross(forward, (0.0, 1.0, 0.0))
    if np.linalg.norm(right) < 1e-6:
        raise ValueError(
            f"the view {forward.tolist()} is vertical, so 'upright' has no meaning; tilt it a little"
        )
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    rotation = np.stack([right, down, forward], axis=-1)
    return Camera(rotation=rotation, position=origin, intrinsics=intrinsics(focal))


def orbit(
    yaw_deg: float = 0.0,
    pitch_deg: float = 0.0,
    *,
    target: ArrayLike = (0.0, 0.0, 0.2),
    radius: float = RADIUS,
    vertical_offset: float = -0.05,
    focal: float = FOCAL,
) -> Camera:
    """The authors' evaluation camera: on a sphere of `radius` about the origin, looking at `target`.
    Yaw turns towards +x. Their sampler maps the vertical v = pi/2 + offset + pitch by phi = arccos(1 - 2 v /
    pi), so the pitch is not an angle exactly and the default offset is about 1.8 degrees of elevation."""
    theta = np.pi / 2 + np.deg2rad(yaw_deg)
    vertical = np.clip(np.pi / 2 + vertical_offset + np.deg2rad(pitch_deg), 1e-5, np.pi - 1e-5)
    phi = np.arccos(1 - 2 * vertical / np.pi)
    direction = np.array(
        [np.sin(phi) * np.cos(np.pi - theta), np.cos(phi), np.sin(phi) * np.sin(np.pi - theta)]
    )
    return look_at(radius * direction, target, focal=focal)


def canonical_camera() -> Camera:
    """The frontal camera: (0, 0, 2.7), looking along -z."""
    return Camera(
        rotation=np.diag([1.0, -1.0, -1.0]), position=np.array([0.0, 0.0, RADIUS]), intrinsics=intrinsics()
    )


def hflip(cameras: ArrayLike) -> NDArray[np.float32]:
    """[..., 25] of the mirror image."""
    flipped = np.array(cameras, dtype=np.float32)
    flipped[..., list(FLIP_NEGATES)] *= -1
    return flipped


def check_cameras(cameras: ArrayLike, *, tolerance: float = 1e-3, radius: float | None = None) -> Array:
    """[..., 25] as float64, or a `ValueError` that names the fault.
    Checks: 25 finite numbers, an orthonormal right-handed rotation, last rows (0, 0, 0, 1) and (0, 0, 1),
    positive focal lengths and, if `radius` is given, the distance from the origin."""
    c = np.asarray(cameras, dtype=np.float64)
    if c.ndim < 1 or c.shape[-1] != CAMERA_DIM:
        raise ValueError(
            f"cameras have shape {c.shape}; the last size must be 25 (16 camera-to-world and 9 intrinsics)"
        )
    flat = c.reshape(-1, CAMERA_DIM)
    pose, k = flat[:, :16].reshape(-1, 4, 4), flat[:, 16:].reshape(-1, 3, 3)
    rotation = pose[:, :3, :3]
    orthonormal = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
    distance = np.linalg.norm(pose[:, :3, 3], axis=1)
    faults = [
        (~np.isfinite(flat).all(axis=1), "is not finite; recompute it"),
        (orthonormal > tolerance, f"has no rotation (R R^T off by over {tolerance:g}); orthonormalise it"),
        (np.linalg.det(rotation) < 0, "mirrors space (det R < 0); use OpenCV axes: right, down, forward"),
        (np.abs(pose[:, 3] - (0, 0, 0, 1)).max(axis=1, initial=0) > tolerance,
         "has a pose whose last row is not 0 0 0 1; store camera-to-world row by row"),
        (np.abs(k[:, 2] - (0, 0, 1)).max(axis=1, initial=0) > tolerance,
         "has intrinsics whose last row is not 0 0 1; store them row by row"),
        (np.minimum(k[:, 0, 0], k[:, 1, 1]) <= 0,
         "has a focal length that is not positive; divide pixels by the image side"),
    ]  # fmt: skip
    if radius is not None:
        faults.append(
            (np.abs(distance - radius) > tolerance, f"is not at radius {radius:g}; re-normalise its position")
        )
    for bad, message in faults:
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"camera {i} {message}: {np.array2string(flat[i], precision=4, max_line_width=400)}"
            )
    return c
