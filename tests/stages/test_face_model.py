import numpy as np

from stages.crop import STANDARD_FIVE, five_points
from stages.face_model import LANDMARKS, RIGID, WORLD_PER_MM, to_world

MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip


def test_the_face_is_its_own_mirror_image() -> None:
    assert sorted(MIRROR) == list(range(68))
    np.testing.assert_allclose(LANDMARKS[MIRROR] * (-1, 1, 1), LANDMARKS, atol=1e-12)


def test_sizes_are_those_of_a_human_face() -> None:
    mm = LANDMARKS / WORLD_PER_MM
    assert np.linalg.norm(mm[36] - mm[45]) == 89
    assert 110 < mm[27, 1] - mm[8, 1] < 120
    assert np.argmax(mm[:, 2]) == 30  # the nose is what is nearest to the camera


def test_it_lies_where_the_crop_puts_a_face() -> None:
    # the five standard points in the world: 0.27 per unit and the offset of the published camera formula
    standard = 0.27 * STANDARD_FIVE + (0, 0.006, 0.161)
    ours = np.stack([five_points(LANDMARKS[:, axes])[:, 0] for axes in ([0, 0], [1, 1], [2, 2])], axis=-1)
    np.testing.assert_allclose(ours, standard, atol=1.1 * WORLD_PER_MM)


def test_rigid_points_leave_out_jaw_and_mouth() -> None:
    assert RIGID.min() == 17
    assert RIGID.max() == 47


def test_millimetres_keep_their_length_in_the_world() -> None:
    np.testing.assert_allclose(to_world([10, 0, 0]) - to_world([0, 0, 0]), [10 * WORLD_PER_MM, 0, 0])
