"""A camera per frame, as 25 numbers: fitted to the landmarks or estimated by a network, smoothed over time.

The lens is EG3D's (focal length 4.2647 crop sides, centred). So is the distance, which is a convention and no
measurement: see `at_distance`. What the angles mean: `stages.rotations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.storage import Storage
from model.camera import FOCAL, RADIUS, Camera, check_cameras, intrinsics
from stages import backends, deep3d
from stages.affine import apply, warp
from stages.base import Drop, Stage
from stages.clip import Clip
from stages.face_model import LANDMARKS, RIGID
from stages.pnp import fit_poses
from stages.rotations import UPRIGHT, euler_from_rotation, smooth_rotations
from stages.smooth import check_not_negative, check_sigma, low_pass

if TYPE_CHECKING:
    from stages.backends.deep3d import Deep3D

Array = NDArray[np.float64]

HEAD = np.array([0.0, 0.0, 0.175])           # world: what the modes `cor` and `simplify` measure from
DISTANCES = ("orig", "cor", "simplify")
BACKENDS = {"pnp": "", "deep3d": "stages.backends.deep3d:Deep3D"}


def at_radius(positions: ArrayLike, radius: float = RADIUS, centre: ArrayLike = (0.0, 0.0, 0.0)) -> Array:
    """[..., 3] moved along their rays from `centre` to `radius`."""
    middle = np.asarray(centre, np.float64)
    away = np.asarray(positions, np.float64) - middle
    return np.asarray(middle + radius * away / np.linalg.norm(away, axis=-1, keepdims=True), np.float64)


def at_distance(mode: str, positions: ArrayLike) -> Array:
    """[..., 3] brought to EG3D's distance: 2.7 from the origin (`orig`) or from the head (the others)."""
    return at_radius(positions, centre=(0.0, 0.0, 0.0) if mode == "orig" else HEAD)


def towards_head(positions: ArrayLike) -> Array:
    """[..., 3] -> [..., 3, 3]: upright cameras there that look at the head."""
    forward = HEAD - np.asarray(positions, np.float64)
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=-1)


def smooth_poses(
    rotations: Array, positions: Array, sigma_s: float, fps: float, distance: str = "orig"
) -> tuple[Array, Array]:
    """Gaussian over time on turn and place, [T, 3, 3] and [T, 3]; the distance is set before and after."""
    placed = at_distance(distance, positions)
    placed = at_distance(distance, low_pass(placed, sigma_s, fps))
    turned = towards_head(placed) if distance == "simplify" else smooth_rotations(rotations, sigma_s, fps)
    return turned, placed


def encode(rotations: Array, positions: Array) -> NDArray[np.float32]:
    """[..., 3, 3] and [..., 3] -> float32 [..., 25] with EG3D's lens."""
    lens = np.broadcast_to(intrinsics(), (*rotations.shape[:-2], 3, 3))
    return Camera(rotation=rotations, position=positions, intrinsics=lens).encode()


def euler_degrees(cameras: ArrayLike) -> tuple[Array, Array, Array]:
    """[..., 25] -> yaw, pitch, roll [...] in degrees; signs in `stages.rotations`."""
    return euler_from_rotation(Camera.decode(cameras).rotation)


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


def rigid_points(clip: Clip) -> tuple[Array, Array]:
    """Rigid points [T, R, 2] in crop px, and where they lie on a head [R, 3]: of the mesh if there is one."""
    if clip.smooth_mesh is not None:
        indices, places = backends.find(clip.landmark_backend).rigid()
        seen = clip.smooth_mesh[:, indices]
    else:
        seen, places = clip.need("smooth_landmarks")[:, RIGID], LANDMARKS[RIGID]
    return apply(clip.need("crop_transforms"), seen), places


def misses(rotations: Array, positions: Array, points: Array, places: Array, size: int) -> Array:
    """[T]: root mean square distance in crop sides from points [T, R, 2] to where cameras see `places`."""
    seen = (places - positions[:, None]) @ rotations
    projected = FOCAL * size * seen[..., :2] / seen[..., 2:] + (size - 1) / 2
    return np.asarray(np.sqrt(((projected - points) ** 2).sum(-1).mean(-1)) / size, np.float64)


@dataclass
class FitCameras(Stage):
    """Find the camera of each crop, then a Gaussian over time on its turn and place.

    `pnp` fits the rigid points of the face; `deep3d` asks the network of Deep3DFaceReconstruction, whose
    checkpoint the user brings. Both must see the rigid face where the landmarks are.
    """

    backend: str = "pnp"                     # or deep3d
    distance: str = "orig"                   # orig, cor, simplify: what is 2.7 away, see docs/cameras.md
    sigma_s: float = 0.04                    # s, of that Gaussian
    max_error: float = 0.03                  # crop sides: largest median error of reprojection

    name: ClassVar[str] = "FitCameras"
    reads: ClassVar[tuple[str, ...]] = (
        "smooth_landmarks", "crop_transforms", "crop_size", "fps", "frame_times_s"
    )
    writes: ClassVar[tuple[str, ...]] = ("cameras",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_sigma(sigma_s=self.sigma_s)
        check_not_negative(max_error=self.max_error)
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: {self.backend!r} finds no cameras; give {' or '.join(BACKENDS)}")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance: {self.distance!r} is unknown; give one of {', '.join(DISTANCES)}")

    def reads_video(self) -> bool:
        return bool(BACKENDS[self.backend])

    def setup(self, store: Storage) -> None:
        self._store = store
        self._network: Deep3D | None = None
        if BACKENDS[self.backend]:
            self._network = backends.load(BACKENDS[self.backend])

    def process(self, clip: Clip) -> Iterator[Clip]:
        points, places = rigid_points(clip)
        if self.backend == "pnp":
            rotations, positions, errors = fit_poses(points, places, clip.crop_size)
        else:
            rotations, positions = deep3d.camera_from_network(*self._estimate(clip))
            errors = misses(rotations, positions, points, places, clip.crop_size)
        error = float(np.median(errors))
        if not error <= self.max_error:
            raise Drop("camera not found", f"the rigid face misses the landmarks by {error:.1%} of the crop")
        if not (rotations @ UPRIGHT)[:, 2, 2].min() > 0:
            raise Drop("camera not found", "the head is turned away by more than 90 degrees")
        cameras = encode(*smooth_poses(rotations, positions, self.sigma_s, clip.fps, self.distance))
        check_cameras(cameras, tolerance=1e-5, radius=RADIUS if self.distance == "orig" else None)
        yield clip.copy(cameras=cameras, smooth_mesh=None)      # megabytes, which nobody needs from here on

    def _estimate(self, clip: Clip) -> tuple[Any, Any]:
        """Angles and translations [T, 3] of the network, which sees the source frames."""
        from stages.video import read_frames, resolve

        assert self._network is not None
        transforms = deep3d.input_transforms(clip.need("crop_transforms"), clip.crop_size)
        finer = max(1, int(np.ceil(1 / np.sqrt(np.linalg.det(transforms[:, :, :2])).min())))
        with resolve(self._store, clip.video) as path:
            frames = read_frames(path, clip.need("frame_times_s"))
            pairs = zip(frames, transforms, strict=True)
            return self._network.poses(warp(f, t, deep3d.INPUT_PX, finer) for f, t in pairs)
