"""Cameras and the laws of the sampled times."""

import numpy as np
import pytest
import torch

from model import camera, rendering, times
from model.camera import Camera


def test_encode_and_decode_are_inverses():
    made = camera.orbit(25, -10)
    again = Camera.decode(made.encode())
    np.testing.assert_allclose(again.rotation, made.rotation, atol=1e-6)
    np.testing.assert_allclose(again.position, made.position, atol=1e-6)
    np.testing.assert_allclose(again.intrinsics, made.intrinsics, atol=1e-6)
    assert made.encode().shape == (25,)


def test_the_canonical_camera_looks_at_the_origin_from_the_front():
    made = camera.canonical_camera()
    origins, directions = rendering.rays(torch.from_numpy(made.encode())[None], 1)
    assert origins[0].tolist() == pytest.approx([0, 0, 2.7])
    assert directions[0, 0].tolist() == pytest.approx([0, 0, -1])
    ours = camera.look_at((0, 0, 2.7), (0, 0, 0))
    np.testing.assert_allclose(ours.rotation, made.rotation, atol=1e-12)


def test_a_positive_yaw_moves_the_camera_towards_plus_x_and_keeps_it_upright():
    made = camera.orbit(30)
    assert made.position[0] > 1
    assert made.rotation[1, 1] < -0.9  # the image's down is the world's -y


def test_the_mirror_camera_sees_the_mirrored_point_at_the_mirrored_pixel():
    made = camera.orbit(20, 5)
    flipped = Camera.decode(camera.hflip(made.encode()))
    mirror = np.diag([-1.0, 1.0, 1.0])

    def pixel(of, point):
        x = of.intrinsics @ of.rotation.T @ (point - of.position)
        return x[:2] / x[2]

    point = np.array([0.1, 0.05, -0.02])
    there, here = pixel(flipped, mirror @ point), pixel(made, point)
    assert there[0] == pytest.approx(1 - here[0], abs=1e-6)
    assert there[1] == pytest.approx(here[1], abs=1e-6)


def broken(index, value):
    c = camera.canonical_camera().encode()
    c[index] = value
    return c


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (np.zeros(24), "last size must be 25"),
        (broken(0, 1.5), "camera 0 has no rotation"),
        (broken(0, -1), "mirrors space"),
        (broken(3, np.nan), "is not finite"),
        (broken(15, 0), "last row is not 0 0 0 1"),
        (broken(24, 2), "last row is not 0 0 1"),
        (broken(16, -4), "focal length that is not positive"),
    ],
)
def test_a_wrong_camera_is_refused_with_the_cure(cameras, message):
    with pytest.raises(ValueError, match=message):
        camera.check_cameras(cameras)


def test_the_radius_is_checked_when_asked():
    camera.check_cameras(camera.canonical_camera().encode(), radius=2.7)
    with pytest.raises(ValueError, match=r"not at radius 2\.7"):
        camera.check_cameras(broken(11, 3.0), radius=2.7)


def test_a_view_along_the_up_axis_is_refused():
    with pytest.raises(ValueError, match="vertical"):
        camera.look_at((0, 2.7, 0), (0, 0, 0))
    with pytest.raises(ValueError, match="is its target"):
        camera.look_at((0, 0, 1), (0, 0, 1))


def test_frame_indices_follow_their_exact_law():
    uniforms = np.random.default_rng(0).random((200_000, 2))
    pairs = times.frame_indices(uniforms, 16)
    counts = np.zeros((16, 16))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1 / len(pairs))
    assert np.abs(counts - times.index_pair_probability(16)).max() < 2e-3
    assert np.all(pairs[:, 0] <= pairs[:, 1])


def test_more_than_two_frames_are_sorted_uniform_draws():
    uniforms = np.random.default_rng(0).random((50_000, 4))
    indices = times.frame_indices(uniforms, 32)
    assert np.all(np.diff(indices, axis=1) >= 0)
    assert times.index_times(indices, 32).mean() == pytest.approx(0.5, abs=5e-3)
    assert times.index_times(np.array([0, 31]), 32).tolist() == [0, 1]


def test_one_frame_is_no_video():
    with pytest.raises(ValueError, match="2 or more"):
        times.frame_indices(np.zeros((3, 1)), 16)
