"""Sharpness of a face, on a portrait that ships inside scikit-image."""

import cv2
import numpy as np
import pytest
import skimage.data

from stages.blur import sharpness
from stages.faces import FollowFace

BOX = (172.0, 66.0, 276.0, 190.0)        # the face, by eye
SIDE = 113.0


def astronaut(scale: float = 1.0) -> np.ndarray:
    picture = skimage.data.astronaut()
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else 2)


def scaled(scale: float) -> tuple[float, ...]:
    return tuple(v * scale for v in BOX)


def blurred(picture: np.ndarray, share: float, side: float = SIDE) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), share * side)


def test_blur_lowers_it_step_by_step() -> None:
    values = [sharpness(blurred(astronaut(), share), BOX) for share in (1e-3, 0.01, 0.02, 0.03)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.6
    assert values[-1] < FollowFace.minimum_sharpness


def test_it_is_that_of_the_face_whatever_the_size_of_the_picture() -> None:
    whole, half = sharpness(astronaut(), BOX), sharpness(astronaut(0.6), scaled(0.6))
    assert half == pytest.approx(whole, abs=0.1)
    enlarged = sharpness(astronaut(3.0), scaled(3.0))
    assert enlarged == pytest.approx(whole, abs=0.1), "a face that was enlarged has lost nothing for its size"


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_does_not_make_a_blurred_face_sharp(quality: int) -> None:
    _, data = cv2.imencode(".jpg", blurred(astronaut(), 0.04), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert sharpness(cv2.imdecode(data, cv2.IMREAD_COLOR), BOX) < FollowFace.minimum_sharpness


def test_noise_does_not_make_a_blurred_face_sharp() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (512, 512, 3))
    grainy = np.clip(blurred(astronaut(), 0.04) + noise, 0, 255).astype(np.uint8)
    assert sharpness(grainy, BOX) < FollowFace.minimum_sharpness


def test_a_movement_blurs_one_direction_and_is_let_pass() -> None:
    kernel = np.zeros((15, 15), np.float32)
    kernel[7] = 1 / 15
    assert sharpness(cv2.filter2D(astronaut(), -1, kernel), BOX) > FollowFace.minimum_sharpness


def test_nothing_to_measure_is_no_number() -> None:
    assert np.isnan(sharpness(astronaut(), (600, 600, 700, 700)))
    assert np.isnan(sharpness(astronaut(), (-100, 20, -10, 90)))
    assert np.isfinite(sharpness(np.full((64, 64, 3), 128, np.uint8), (0, 0, 64, 64)))
