import numpy as np
import pytest

from model.camera import look_at
from stages.rotations import (
    angle_between,
    euler_from_rotation,
    nearest_rotation,
    rotation_from_euler,
    smooth_rotations,
    turn,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("side", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_yaw_is_positive_to_the_right_and_pitch_above(side: tuple[int, int]) -> None:
    yaw, pitch, roll = euler_from_rotation(look_at((*side, 2.5), (0, 0, 0)).rotation)
    assert (np.sign(np.round([yaw, pitch], 3)) == side).all()
    assert roll == pytest.approx(0, abs=1e-3)


def test_angles_and_rotations_are_inverse() -> None:
    angles = RANDOM.uniform(-60, 60, (3, 20))
    np.testing.assert_allclose(euler_from_rotation(rotation_from_euler(*angles)), angles, atol=1e-9)


def test_a_turn_takes_one_axis_towards_the_other() -> None:
    np.testing.assert_allclose(turn(2, 0, np.pi / 2) @ (0, 0, 1), (1, 0, 0), atol=1e-12)
    assert (turn(0, 1, np.deg2rad(10)) @ (1, 0, 0))[1] > 0


def test_the_angle_between_is_that_of_the_turn() -> None:
    start = rotation_from_euler(*RANDOM.uniform(-40, 40, (3, 4)))
    for degrees in (0, 1e-4, 3, 90, 179):
        np.testing.assert_allclose(
            angle_between(start, start @ turn(1, 2, np.deg2rad(degrees))), degrees, atol=1e-6
        )


def test_the_nearest_rotation_of_a_mirrored_matrix_is_a_rotation() -> None:
    found = nearest_rotation(RANDOM.normal(size=(50, 3, 3)))
    np.testing.assert_allclose(np.linalg.det(found), 1)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)


def test_smoothing_keeps_a_constant_and_stays_on_the_group_and_calms() -> None:
    constant = np.tile(rotation_from_euler(20, 5, 170), (30, 1, 1))
    np.testing.assert_allclose(smooth_rotations(constant, 0.1, 25), constant, atol=1e-12)
    shaken = rotation_from_euler(*RANDOM.normal(scale=10, size=(3, 30)))
    calm = smooth_rotations(shaken, 0.1, 25)
    np.testing.assert_allclose(calm @ calm.transpose(0, 2, 1), np.tile(np.eye(3), (30, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(calm), 1)
    jitter = [np.abs(np.diff(r, 2, axis=0)).mean() for r in (shaken, calm)]
    assert jitter[1] < 0.2 * jitter[0]


def test_smoothing_is_of_the_turn_and_not_of_its_angles() -> None:
    """The same head seen from another side is smoothed the same way, also where angles jump by 360."""
    turns = rotation_from_euler(170 + RANDOM.normal(scale=15, size=40), 10 * np.sin(np.arange(40) / 5), 0)
    other = rotation_from_euler(35, -20, 80)
    np.testing.assert_allclose(smooth_rotations(other @ turns, 0.1, 25),
                               other @ smooth_rotations(turns, 0.1, 25), atol=1e-12)  # fmt: skip


def test_the_width_is_in_seconds() -> None:
    turns = rotation_from_euler(RANDOM.normal(scale=5, size=60), 0, 0)
    np.testing.assert_array_equal(smooth_rotations(turns, 0.08, 25), smooth_rotations(turns, 0.04, 50))
