import numpy as np
import pytest

from model.camera import FOCAL, check_cameras
from stages.cameras import at_distance, encode
from stages.deep3d import (
    INPUT_PX,
    angles_from_rotation,
    camera_from_network,
    input_transforms,
    rotation_from_angles,
)
from stages.rotations import UPRIGHT, euler_from_rotation

RANDOM = np.random.default_rng(0)


def test_zero_angles_and_translation_give_the_published_position() -> None:
    rotation, position = camera_from_network(np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(rotation, UPRIGHT)
    np.testing.assert_allclose(at_distance("orig", position), (0, 0.00566, 2.69999), atol=5e-6)


def test_a_published_label_is_a_camera() -> None:
    """EG3D's issue 65: the label of 00023.png, of which the position and the shape of R were published."""
    label = encode(UPRIGHT[None], np.array([[0.00152, -0.01205, 2.69997]]))
    check_cameras(label, tolerance=1e-4, radius=2.7)


def test_the_camera_sees_what_the_network_saw() -> None:
    """Points of the face land on the same pixels through Deep3D's renderer and through our 25 numbers."""
    points = RANDOM.uniform(-0.8, 0.8, (40, 3))                      # the network's units
    for _ in range(20):
        angles, shift = RANDOM.uniform(-0.7, 0.7, 3), RANDOM.uniform(-0.3, 0.3, 3)
        seen = points @ rotation_from_angles(angles) + shift
        depth = 10 - seen[:, 2]
        rendered = 1015 * seen[:, :2] / depth[:, None] + 112          # px of the input, y up
        rotation, position = camera_from_network(angles, shift)
        world = 0.27 * points + (0, 0.006, 0.161)
        ours = (world - position) @ rotation
        pixels = 1015 * ours[:, :2] / ours[:, 2:] + 112               # y down
        np.testing.assert_allclose(pixels, rendered * (1, -1) + (0, 224), atol=1e-9)
        np.testing.assert_allclose(ours[:, 2], 0.27 * depth)


@pytest.mark.parametrize(("angle", "ours"), [(0, 1), (1, 0), (2, 2)])
def test_signs_agree_with_ours(angle: int, ours: int) -> None:
    """Deep3D counts yaw and roll the other way; pitch as we do."""
    given = np.zeros(3)
    given[angle] = 0.2
    found = np.zeros(3)
    found[ours] = np.rad2deg(0.2) * (1 if angle == 0 else -1)
    np.testing.assert_allclose(
        euler_from_rotation(camera_from_network(given, np.zeros(3))[0]), found, atol=1e-9
    )


def test_angles_come_back_from_the_camera() -> None:
    angles = RANDOM.uniform(-1, 1, (30, 3))
    rotations, _ = camera_from_network(angles, np.zeros((30, 3)))
    np.testing.assert_allclose(angles_from_rotation(rotations), angles, atol=1e-12)


def test_the_input_shows_the_middle_of_the_crop_at_the_published_scale() -> None:
    crop = np.array([[[0.8, -0.1, 20.0], [0.1, 0.8, -7.0]]])
    size = 512
    inner = input_transforms(crop, size)
    zoom = [np.sqrt(np.linalg.det(t[0, :, :2])) for t in (inner, crop)]
    assert zoom[0] / zoom[1] == pytest.approx(102 / (300 * 512 / 700))
    middle = np.linalg.solve(crop[0, :, :2], (size - 1) / 2 - crop[0, :, 2])
    np.testing.assert_allclose(inner[0] @ [*middle, 1], (INPUT_PX - 1) / 2)
    # one lens for both: 1015 px of 224 is EG3D's focal length, of what the crop shows
    assert 1015 / INPUT_PX * zoom[1] / zoom[0] * INPUT_PX / size == pytest.approx(FOCAL, abs=1e-4)
