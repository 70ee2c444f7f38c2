import numpy as np
import pytest

from model.camera import FOCAL
from stages.face_model import LANDMARKS, RIGID
from stages.pnp import fit_poses
from stages.rotations import euler_from_rotation, rotation_from_euler

RANDOM = np.random.default_rng(0)
SIZE = 512
MIDDLE = np.array([0.0, 0.0, 0.2])
FACE = LANDMARKS[RIGID]


def film(yaw: float, pitch: float, roll: float, distance: float = 2.7) -> np.ndarray:
    """Rigid points [R, 2] in a crop, from a camera that looks at the middle of the face."""
    rotation = rotation_from_euler(yaw, pitch, roll)
    seen = (FACE - (MIDDLE - distance * rotation[:, 2])) @ rotation
    return FOCAL * SIZE * seen[:, :2] / seen[:, 2:] + (SIZE - 1) / 2


@pytest.mark.parametrize(
    "angles",
    [(0, 0, 0), (35, 0, 0), (-35, 10, 5), (10, -25, -8), (60, 5, 0), (-75, 0, 20), (80, 10, -9), (15, 40, 0)],
)
def test_finds_the_camera_that_filmed_the_face(angles: tuple[float, float, float]) -> None:
    rotations, positions, errors = fit_poses(film(*angles)[None], FACE, SIZE)
    expected = rotation_from_euler(*angles)
    np.testing.assert_allclose(rotations[0], expected, atol=1e-4)
    np.testing.assert_allclose(positions[0], MIDDLE - 2.7 * expected[:, 2], atol=1e-3)
    assert errors[0] < 1e-5


def test_noise_on_the_points_does_not_flip_the_face() -> None:
    truth = np.array([film(a, 0, 0) for a in np.linspace(-30, 30, 40)])
    rotations, _, errors = fit_poses(truth + RANDOM.normal(scale=2.0, size=truth.shape), FACE, SIZE)
    yaw = euler_from_rotation(rotations)[0]
    assert np.abs(yaw - np.linspace(-30, 30, 40)).max() < 8
    assert np.sqrt(2) * 2.0 / SIZE * 0.5 < errors.mean() < np.sqrt(2) * 2.0 / SIZE


def test_a_frame_does_not_depend_on_its_neighbours() -> None:
    frames = np.array([film(a, 5, 0) for a in (-40, 10, 40)])
    frames[1] = RANDOM.uniform(0, SIZE, frames[1].shape)
    whole, alone = fit_poses(frames, FACE, SIZE)[0], fit_poses(frames[2:], FACE, SIZE)[0]
    np.testing.assert_array_equal(whole[2], alone[0])
