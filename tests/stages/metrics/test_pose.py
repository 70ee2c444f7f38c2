"""What is measured in single frames: real arithmetic, and one real face."""

import cv2
import numpy as np
import pytest

from stages.metrics.pose import FEWEST, face_yaw, following
from stages.rotations import euler_from_rotation
from stages.sources.portraits import EILEEN_COLLINS, load
from stages.sources.relief import Expression, View, truth

YAWS = np.linspace(-30, 30, 13)


def test_angles_that_follow_have_their_slope_and_error() -> None:
    found = following(YAWS, 0.5 * YAWS + 2)
    assert (found.found, found.correlation, found.slope) == pytest.approx((1, 1, 0.5))
    assert found.error_deg == pytest.approx(np.abs(2 - 0.5 * YAWS).mean())
    assert following(YAWS, -YAWS).correlation == pytest.approx(-1)


def test_noise_lowers_the_correlation_as_numpy_says() -> None:
    measured = YAWS + 20 * np.random.default_rng(0).normal(size=len(YAWS))
    assert following(YAWS, measured).correlation == pytest.approx(np.corrcoef(YAWS, measured)[0, 1])


def test_frames_without_a_face_are_left_out_and_counted() -> None:
    measured = YAWS.copy()
    measured[::3] = np.nan
    found = following(YAWS, measured)
    assert found.found == pytest.approx(8 / 13)
    assert (found.correlation, found.error_deg) == pytest.approx((1, 0))


@pytest.mark.parametrize("seen", [0, 1, FEWEST - 1])
def test_few_faces_have_no_correlation(seen: int) -> None:
    measured = np.full(len(YAWS), np.nan)
    measured[:seen] = YAWS[:seen]
    found = following(YAWS, measured)
    assert found.found == pytest.approx(seen / len(YAWS))
    assert np.isnan(found.correlation)
    assert np.isnan(found.error_deg) == (seen == 0)


def test_faces_that_never_turn_have_no_correlation() -> None:
    assert np.isnan(following(YAWS, np.zeros(len(YAWS))).correlation)


def test_a_face_is_measured_as_it_is_turned_and_noise_has_none() -> None:
    detector = pytest.importorskip("stages.backends.dlib").DlibFaces()
    pytest.importorskip("skimage")
    relief = load(EILEEN_COLLINS)
    views = [View(yaw, 0, 0, 1.75, (128, 128)) for yaw in (-20.0, 20.0)]
    commanded = [float(euler_from_rotation(truth(view)[0])[0]) for view in views]
    assert sorted(commanded) == pytest.approx([-20, 20])
    frames = [relief.frame(view, Expression(), 256, 256) for view in views]
    assert [face_yaw(frame, detector) for frame in frames] == pytest.approx(commanded, abs=6)
    small = [cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames]
    assert [face_yaw(frame, detector) for frame in small] == pytest.approx(commanded, abs=9)
    noise = np.random.default_rng(0).integers(0, 255, frames[0].shape).astype(np.uint8)
    assert np.isnan(face_yaw(noise, detector))
