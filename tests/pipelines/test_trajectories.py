from pathlib import Path

import numpy as np
import pytest

from model import camera
from pipelines.trajectories import PATHS, trajectory, turned


def angles(cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and elevation of the positions, degrees."""
    x, y, z = camera.Camera.decode(cameras).position.T
    return np.rad2deg(np.arctan2(x, z)), np.rad2deg(np.arctan2(y, np.hypot(x, z)))


def test_an_orbit_starts_at_the_front_and_reaches_its_angle_on_both_sides() -> None:
    yaw, elevation = angles(trajectory("orbit", 8, yaw_deg=20))
    np.testing.assert_allclose(yaw[[0, 2, 4, 6]], [0, 20, 0, -20], atol=1e-4)
    np.testing.assert_allclose(elevation, 0, atol=1e-4)


def test_a_nod_goes_up_and_down_alone() -> None:
    yaw, elevation = angles(trajectory("nod", 8, pitch_deg=10))
    np.testing.assert_allclose(yaw, 0, atol=1e-4)
    assert elevation[2] == pytest.approx(-elevation[6], abs=1e-3)
    assert 5 < abs(elevation[2]) < 10  # the evaluation sphere's pitch is no angle exactly


def test_a_figure_eight_crosses_itself_at_the_front() -> None:
    yaw, elevation = angles(trajectory("figure-eight", 16))
    np.testing.assert_allclose([yaw[0], yaw[8], elevation[0], elevation[8]], 0, atol=1e-4)
    assert np.sign(elevation[2]) == -np.sign(elevation[6])
    assert yaw.max() == pytest.approx(30, abs=1)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_of_sound_cameras_that_look_at_the_head(path: str) -> None:
    cameras = trajectory(path, 5)
    camera.check_cameras(cameras, radius=camera.RADIUS)
    if path == "still":
        np.testing.assert_allclose(cameras[0], camera.canonical_camera().encode(), atol=1e-6)


def test_a_view_is_carried_round_the_head() -> None:
    np.testing.assert_allclose(
        turned(trajectory("still", 1), 30.0), trajectory("still", 1, yaw_deg=30.0), atol=1e-5
    )


def test_few_cameras_of_a_file_are_played_to_and_fro(tmp_path: Path) -> None:
    cameras = trajectory("orbit", 12)[:3]
    np.save(tmp_path / "c.npy", cameras)
    np.testing.assert_array_equal(trajectory(str(tmp_path / "c.npy"), 6), cameras[[0, 1, 2, 1, 0, 1]])


def test_files_that_cannot_be_followed_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", trajectory("still", 2))
    with pytest.raises(ValueError, match=r"has 2 clips; name one, such as .*#"):
        trajectory(str(tmp_path), 2)
    np.testing.assert_array_equal(trajectory(f"{tmp_path}#b.npy", 2), trajectory("still", 2))
    np.save(tmp_path / "bad.npy", np.full((2, 25), np.nan))
    with pytest.raises(ValueError, match=r"bad.npy: camera 0 is not finite"):
        trajectory(str(tmp_path / "bad.npy"), 2)
    with pytest.raises(ValueError, match="has no clip 'c'"):
        trajectory(f"{tmp_path}#c", 2)
