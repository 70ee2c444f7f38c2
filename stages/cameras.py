"""A camera per frame: our rigid face seen through EG3D's lens, smoothed over time, as 25 numbers.

The lens is known (focal length 4.2647 crop sides, centred), so the pose of the camera follows from where
the rigid points of the face lie in the crop. The distance is EG3D's convention, not a measurement: it is set
to 2.7.

Angles, for reading: with positive yaw the camera stands on the +x side, so that the face in the picture looks
past it to the left; with positive pitch it stands above the face; with positive roll it is turned
counter-clockwise, as its user sees it, so that the face in the picture leans clockwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.camera import FOCAL, RADIUS, Camera, check_cameras, intrinsics
from stages.base import Drop, Stage
from stages.clip import Clip
from stages.crop import apply
from stages.face_model import LANDMARKS, RIGID
from stages.smooth import check_not_negative, low_pass

Array = NDArray[np.float64]

UPRIGHT = np.diag([1.0, -1.0, -1.0])         # OpenCV axes of a camera in front of the face, looking at it
CROP_DISTANCE = 2.86                         # world units: where the camera of a crop really stands


def fit_poses(landmarks: ArrayLike, size: int) -> tuple[Array, Array, Array]:
    """Landmarks [T, 68, 2] in crop px -> rotation [T, 3, 3] camera to world, position [T, 3], error [T].

    The error is the root mean square distance of the reprojected rigid points, in crop sides.
    """
    import cv2

    points = np.asarray(landmarks, np.float64)[:, RIGID]
    model = np.ascontiguousarray(LANDMARKS[RIGID])
    middle = (size - 1) / 2
    lens = np.array([[FOCAL * size, 0, middle], [0, FOCAL * size, middle], [0, 0, 1.0]])
    rotations, positions, errors = [], [], []
    for seen in points:
        # A face is nearly flat, so a free fit has a mirrored second solution; starting from a frontal
        # camera at the crop's distance keeps to the right one. Every frame starts there, not at its
        # neighbour, so that one bad frame cannot lead the rest astray.
        turn, shift = cv2.Rodrigues(UPRIGHT)[0], np.array([[0.0], [0.0], [CROP_DISTANCE]])
        _, turn, shift = cv2.solvePnP(
            model, np.ascontiguousarray(seen), lens, None, turn, shift, True, cv2.SOLVEPNP_ITERATIVE
        )
        projected = cv2.projectPoints(model, turn, shift, lens, None)[0].reshape(-1, 2)
        rotation = np.asarray(cv2.Rodrigues(turn)[0], np.float64)
        rotations.append(rotation.T)
        positions.append((-rotation.T @ shift).ravel())
        errors.append(np.sqrt(((projected - seen) ** 2).sum(axis=-1).mean()) / size)
    return np.stack(rotations), np.stack(positions), np.array(errors)


def smooth_rotations(rotations: Array, sigma_s: float, fps: float) -> Array:
    """Gaussian over time on the rotation group, [T, 3, 3]: the rotation nearest to the weighted mean."""
    u, _, vt = np.linalg.svd(low_pass(rotations, sigma_s, fps))
    u[..., -1] *= np.linalg.det(u @ vt)[:, None]
    return np.asarray(u @ vt, np.float64)


def at_radius(positions: Array, radius: float = RADIUS) -> Array:
    """[..., 3] moved along their rays from the origin to `radius`."""
    return np.asarray(radius * positions / np.linalg.norm(positions, axis=-1, keepdims=True), np.float64)


def encode(rotations: Array, positions: Array) -> NDArray[np.float32]:
    """[..., 3, 3] and [..., 3] -> float32 [..., 25] with EG3D's lens."""
    lens = np.broadcast_to(intrinsics(), (*rotations.shape[:-2], 3, 3))
    return Camera(rotation=rotations, position=positions, intrinsics=lens).encode()


def euler_degrees(cameras: ArrayLike) -> tuple[Array, Array, Array]:
    """[..., 25] -> yaw, pitch, roll [...] in degrees; signs in the text at the top of this file."""
    axes = Camera.decode(cameras).rotation @ UPRIGHT               # right, up, backward
    backward = axes[..., :, 2]
    yaw = np.arctan2(backward[..., 0], backward[..., 2])
    pitch = np.arcsin(np.clip(backward[..., 1], -1, 1))
    roll = np.arctan2(axes[..., 1, 0], axes[..., 1, 1])
    return np.rad2deg(yaw), np.rad2deg(pitch), np.rad2deg(roll)


def rotation_from_euler(yaw_deg: ArrayLike, pitch_deg: ArrayLike, roll_deg: ArrayLike) -> Array:
    """Inverse of `euler_degrees`: [...] degrees -> [..., 3, 3] camera to world."""
    turned = _turn(2, 0, yaw_deg) @ _turn(2, 1, pitch_deg) @ _turn(0, 1, roll_deg)
    return turned @ UPRIGHT


def _turn(start: int, end: int, angle_deg: ArrayLike) -> Array:
    """[...] degrees -> [..., 3, 3]: the rotation that takes axis `start` towards axis `end`."""
    angle = np.deg2rad(np.asarray(angle_deg, np.float64))
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[...] = np.eye(3)
    matrix[..., start, start] = matrix[..., end, end] = np.cos(angle)
    matrix[..., end, start], matrix[..., start, end] = np.sin(angle), -np.sin(angle)
    return matrix


def as_filmed(cameras: ArrayLike, transforms: ArrayLike) -> NDArray[np.float32]:
    """Cameras [T, 25] of crops, turned back to how the source frame was held; `transforms` are the crop's."""
    camera = Camera.decode(cameras)
    linear = np.asarray(transforms, np.float64)[..., :2]
    turn = linear / np.sqrt(np.linalg.det(linear))[..., None, None]
    whole = np.zeros((*turn.shape[:-2], 3, 3))
    whole[..., :2, :2], whole[..., 2, 2] = turn, 1
    return encode(camera.rotation @ whole, camera.position)


def angle_errors(estimated: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Mean absolute error of yaw, pitch and roll in degrees over [T, 25], a constant removed from each.

    The constant cannot be known, because nobody's face is the average face.
    """
    errors = {}
    pairs = zip(euler_degrees(estimated), euler_degrees(true), strict=True)
    for name, (ours, theirs) in zip(("yaw", "pitch", "roll"), pairs, strict=True):
        difference = (ours - theirs + 180) % 360 - 180
        errors[name] = float(np.abs(difference - difference.mean()).mean())
    return errors


@dataclass
class FitCameras(Stage):
    """Perspective-n-point on the rigid points of each crop, then a Gaussian over time on turn and place."""

    sigma_s: float = 0.08                    # s, of that Gaussian
    max_error: float = 0.03                  # crop sides: largest median error of reprojection

    name: ClassVar[str] = "FitCameras"
    reads: ClassVar[tuple[str, ...]] = ("smooth_landmarks", "crop_transforms", "crop_size", "fps")
    writes: ClassVar[tuple[str, ...]] = ("cameras",)

    def __post_init__(self) -> None:
        check_not_negative(sigma_s=self.sigma_s, max_error=self.max_error)

    def process(self, clip: Clip) -> Iterator[Clip]:
        landmarks = apply(clip.need("crop_transforms"), clip.need("smooth_landmarks"))
        rotations, positions, errors = fit_poses(landmarks, clip.crop_size)
        facing = (rotations @ UPRIGHT)[:, 2, 2]
        error = float(np.median(errors))
        if not (error <= self.max_error and facing.min() > 0):
            raise Drop("camera not found", f"the rigid face misses the landmarks by {error:.1%} of the crop")
        rotations = smooth_rotations(rotations, self.sigma_s, clip.fps)
        positions = at_radius(low_pass(at_radius(positions), self.sigma_s, clip.fps))
        cameras = encode(rotations, positions)
        check_cameras(cameras, tolerance=1e-5, radius=RADIUS)
        yield clip.copy(cameras=cameras)
