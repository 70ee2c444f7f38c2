from pathlib import Path

import numpy as np
import pytest

from model.camera import FOCAL, Camera, check_cameras
from stages.affine import apply
from stages.base import Drop
from stages.cameras import (
    HEAD,
    FitCameras,
    angle_errors,
    as_filmed,
    at_distance,
    at_radius,
    encode,
    euler_degrees,
    smooth_poses,
)
from stages.clip import Clip
from stages.crop import crop_transforms
from stages.face_model import LANDMARKS, RIGID
from stages.pnp import fit_poses
from stages.rotations import UPRIGHT, angle_between, rotation_from_euler

RANDOM = np.random.default_rng(0)
SIZE = 512
MIDDLE = np.array([0.0, 0.0, 0.2])


def film(yaw: float, pitch: float, roll: float, distance: float = 2.7) -> np.ndarray:
    """Landmarks [68, 2] of our face in a crop, from a camera that looks at its middle."""
    rotation = rotation_from_euler(yaw, pitch, roll)
    seen = (LANDMARKS - (MIDDLE - distance * rotation[:, 2])) @ rotation
    return FOCAL * SIZE * seen[:, :2] / seen[:, 2:] + (SIZE - 1) / 2


def clip_of(landmarks: np.ndarray) -> Clip:
    transforms = np.tile(np.eye(2, 3), (len(landmarks), 1, 1))
    return Clip(
        id="a", source="a", video="a", fps=25.0, smooth_landmarks=landmarks.astype(np.float32),
        crop_transforms=transforms, crop_size=SIZE,
    )  # fmt: skip


def run(stage: FitCameras, clip: Clip, store) -> Clip:
    stage.setup(store)
    (fitted,) = stage.process(clip)
    return fitted


def test_with_positive_yaw_the_nose_points_left_in_the_picture() -> None:
    face = film(20, 0, 0)
    assert face[30, 0] < (face[36, 0] + face[45, 0]) / 2


def test_with_positive_pitch_the_nose_points_down() -> None:
    assert film(0, 10, 0)[30, 1] - film(0, 10, 0)[27, 1] > film(0, -10, 0)[30, 1] - film(0, -10, 0)[27, 1]


def test_with_positive_roll_the_face_leans_clockwise() -> None:
    face = film(0, 0, 10)
    assert face[45, 1] > face[36, 1]  # the eye on the right is lower


def test_positions_are_moved_along_their_rays() -> None:
    moved = at_radius(np.array([[0.0, 0.3, 2.9]]))
    assert np.linalg.norm(moved) == pytest.approx(2.7)
    assert moved[0, 1] / moved[0, 2] == pytest.approx(0.3 / 2.9)


def test_the_stage_writes_cameras_that_pass_the_validator(store) -> None:
    angles = [(20 * np.sin(t / 8), 5 * np.cos(t / 9), 3.0) for t in range(50)]
    landmarks = np.array([film(*a) for a in angles]) + RANDOM.normal(scale=0.5, size=(50, 68, 2))
    fitted = run(FitCameras(), clip_of(landmarks), store)
    assert fitted.cameras.dtype == np.float32
    assert fitted.cameras.shape == (50, 25)
    check_cameras(fitted.cameras, tolerance=1e-5, radius=2.7)
    true = encode(rotation_from_euler(*np.transpose(angles)), np.tile([0, 0, 2.7], (50, 1)))
    errors = angle_errors(fitted.cameras, true)
    assert max(errors.values()) < 1


def test_rejects_points_that_are_no_face(store) -> None:
    scattered = RANDOM.uniform(0, SIZE, (50, 68, 2))
    with pytest.raises(Drop, match="camera not found"):
        run(FitCameras(), clip_of(scattered), store)


def test_a_constant_offset_is_no_error() -> None:
    yaw = np.linspace(-15, 15, 30)
    true = encode(rotation_from_euler(yaw, 0 * yaw, 0 * yaw), np.tile([0, 0, 2.7], (30, 1)))
    off = encode(rotation_from_euler(yaw + 3, 0 * yaw, 0 * yaw), np.tile([0, 0, 2.7], (30, 1)))
    assert angle_errors(off, true)["yaw"] == pytest.approx(0, abs=1e-4)
    assert angle_errors(true[::-1], true)["yaw"] > 10


def test_a_camera_is_turned_back_to_how_the_frame_was_held() -> None:
    """The crop stands upright whatever the roll of the camera; the transform remembers it."""
    held = np.array([film(10, 3, roll) for roll in (-15, 0, 15)])
    transforms = crop_transforms(held, SIZE)
    rotations, positions, _ = fit_poses(apply(transforms, held)[:, RIGID], LANDMARKS[RIGID], SIZE)
    cameras = encode(rotations, at_radius(positions))
    assert np.ptp(euler_degrees(cameras)[2]) < 0.1
    roll = euler_degrees(as_filmed(cameras, transforms))[2]
    np.testing.assert_allclose(roll - roll[1], (-15, 0, 15), atol=0.1)


def test_the_frontal_camera_is_the_canonical_one() -> None:
    camera = Camera.decode(encode(UPRIGHT[None], np.array([[0, 0, 2.7]])))
    np.testing.assert_allclose(camera.intrinsics[0], [[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1]], rtol=1e-6)
    assert RIGID.size == 31


@pytest.mark.parametrize("mode", ["orig", "cor", "simplify"])
def test_every_mode_keeps_its_distance_after_smoothing(mode: str) -> None:
    angles = np.array([(30 * np.sin(t / 4), 8 * np.cos(t / 5), 3 * np.sin(t / 3)) for t in range(60)])
    rotations = rotation_from_euler(*angles.T)
    positions = MIDDLE - 2.8 * rotations[:, :, 2]
    turned, placed = smooth_poses(rotations, positions, 0.1, 25, mode)
    centre = (0, 0, 0) if mode == "orig" else HEAD
    np.testing.assert_allclose(np.linalg.norm(placed - centre, axis=-1), 2.7)
    np.testing.assert_allclose(np.linalg.det(turned), 1)
    first = [parts[:1].repeat(9, axis=0) for parts in (rotations, positions)]
    still, there = smooth_poses(*first, 0.1, 25, mode)
    np.testing.assert_allclose(there, np.tile(at_distance(mode, positions[:1]), (9, 1)), atol=1e-12)
    if mode != "simplify":
        np.testing.assert_allclose(still, first[0], atol=1e-12)
    else:
        forward = (HEAD - placed) / 2.7
        np.testing.assert_allclose(turned[:, :, 2], forward, atol=1e-12)
        np.testing.assert_allclose(euler_degrees(encode(turned, placed))[2], 0, atol=1e-6)


def test_smoothing_calms_a_shaking_camera() -> None:
    angles = RANDOM.normal(scale=2, size=(3, 80))
    rotations = rotation_from_euler(*angles)
    positions = MIDDLE - 2.8 * rotations[:, :, 2]
    raw, calm = (encode(*smooth_poses(rotations, positions, sigma, 25)) for sigma in (0, 0.08))
    jitter = [np.abs(np.diff(cameras, 2, axis=0)).mean(axis=0)[:12].mean() for cameras in (raw, calm)]
    assert jitter[1] < 0.2 * jitter[0]


@pytest.mark.parametrize("settings", [{"backend": "fan"}, {"distance": "2.7"}, {"sigma_s": -1}])
def test_refuses_settings_that_mean_nothing(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FitCameras(**settings)


@pytest.mark.parametrize("angles", [(0, 0, 0), (25, 8, 0), (-60, -5, 0)])
def test_the_mesh_and_the_68_points_agree_on_the_camera(
    shared_data: Path, monkeypatch, store, angles: tuple[float, float, float]
) -> None:
    """One head with both kinds of points, filmed by a known camera."""
    pytest.importorskip("mediapipe")
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    from stages.backends.mediapipe import POINTS_68, MediaPipeFaces, canonical

    indices, places = MediaPipeFaces.rigid()
    head = np.zeros((478, 3))
    head[: len(canonical())] = canonical()
    np.testing.assert_allclose(head[indices], places)
    rotation = rotation_from_euler(*angles)
    seen = (head - (MIDDLE - 2.7 * rotation[:, 2])) @ rotation
    mesh = np.tile(FOCAL * SIZE * seen[:, :2] / seen[:, 2:] + (SIZE - 1) / 2, (5, 1, 1))
    by_points = run(FitCameras(), clip_of(mesh[:, POINTS_68]), store)
    path = "stages.backends.mediapipe:MediaPipeFaces"
    both = clip_of(mesh[:, POINTS_68]).copy(smooth_mesh=mesh.astype(np.float32), landmark_backend=path)
    by_mesh = run(FitCameras(), both, store)
    np.testing.assert_allclose(np.ravel(euler_degrees(by_mesh.cameras[2])), angles, atol=0.01)
    assert angle_between(*(c.cameras[2][:16].reshape(4, 4)[:3, :3] for c in (by_mesh, by_points))) < 6
