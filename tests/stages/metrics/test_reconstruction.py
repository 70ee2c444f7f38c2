"""L1, PSNR, SSIM and LPIPS of reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.metrics import Evaluation, load
from stages.metrics.l1 import l1
from stages.metrics.psnr import psnr
from stages.metrics.ssim import ssim

NAMES = ("l1", "psnr", "ssim")
RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 200, (3, 24, 24, 3)).astype(np.uint8)


def test_a_constant_difference_has_the_known_error() -> None:
    brighter = VIDEO + 51
    np.testing.assert_allclose(l1(VIDEO, brighter), 51 / 255)
    np.testing.assert_allclose(psnr(VIDEO, brighter), 20 * np.log10(255 / 51))
    assert (ssim(VIDEO, brighter) < 1).all()


def test_equal_videos_are_equal() -> None:
    np.testing.assert_array_equal(l1(VIDEO, VIDEO), 0)
    np.testing.assert_allclose(psnr(VIDEO, VIDEO), 100)
    np.testing.assert_allclose(ssim(VIDEO, VIDEO), 1)


def test_the_similarity_of_flat_pictures_is_its_formula() -> None:
    a, b, c1 = 60.0, 120.0, (0.01 * 255) ** 2
    flat = [np.full((1, 16, 16, 3), level) for level in (a, b)]
    assert ssim(*flat)[0] == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), rel=1e-6)


def test_pairs_are_averaged_over_frames_then_videos() -> None:
    half = VIDEO.copy()
    half[0] += 51
    given = Evaluation(reconstructions=[(VIDEO, half), (VIDEO, VIDEO)])
    value = load("stages.metrics.l1")(given)["l1"]
    assert value.value == pytest.approx(51 / 255 / 3 / 2)
    assert value.samples == 2
    assert value.interval[0] <= value.value <= value.interval[1]


@pytest.mark.parametrize("name", [*NAMES, "lpips"])
def test_without_reconstructions_there_is_no_figure(name: str) -> None:
    value = load(f"stages.metrics.{name}")(Evaluation())[name]
    assert value.value is None
    assert value.reason


@pytest.mark.parametrize("measure", [l1, psnr, ssim])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (VIDEO[:2], r"\[2, 24, 24, 3\], its video \[3, 24, 24, 3\]"),
        (np.full(VIDEO.shape, np.nan), "not finite"),
        (VIDEO / 255.0 - 1, "levels from -1 to"),
    ],
)
def test_what_is_no_reconstruction_of_the_video_is_refused(measure, made, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(VIDEO, made)


@pytest.mark.parametrize("name", NAMES)
def test_an_iterator_that_the_next_metric_would_find_empty_is_refused(name: str) -> None:
    given = Evaluation(reconstructions=iter([(VIDEO, VIDEO)]))
    with pytest.raises(ValueError, match="give a list"):
        load(f"stages.metrics.{name}")(given)


@pytest.mark.parametrize(
    ("name", "unit", "direction"),
    [
        ("l1", "share of full range", "lower"),
        ("psnr", "dB", "higher"),
        ("ssim", "similarity", "higher"),
    ],
)
def test_a_figure_of_reconstructions_has_its_unit_and_direction(name: str, unit: str, direction: str) -> None:
    value = load(f"stages.metrics.{name}")(Evaluation(reconstructions=[(VIDEO, VIDEO)]))[name]
    assert (value.unit, value.direction, value.samples, value.interval) == (unit, direction, 1, None)


def test_similarity_is_its_definition_with_a_gaussian_of_eleven_pixels() -> None:
    """Wang et al. 2004, over the places where the window fits."""
    from scipy.signal import convolve2d

    a = RANDOM.integers(0, 256, (20, 26, 3)).astype(np.float64)
    b = np.clip(a + RANDOM.normal(0, 40, a.shape), 0, 255)
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(gauss, gauss) / gauss.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        mx, my, xx, yy, xy = (convolve2d(z, window, "valid") for z in (x, y, x * x, y * y, x * y))
        top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        found.append((top / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))).mean())
    assert ssim(a[None], b[None])[0] == pytest.approx(np.mean(found), rel=1e-9)


def test_lpips_is_the_squared_distance_of_the_networks_features(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from metric_files import PictureNetwork, script, seeded

    path = script(tmp_path, seeded(PictureNetwork), "random.pt")
    other = VIDEO[::-1].copy()
    given = Evaluation(reconstructions=[(VIDEO, other)], networks={"lpips": str(path)})
    value = load("stages.metrics.lpips")(given)["lpips/random"]
    x, y = (torch.from_numpy(v.transpose(0, 3, 1, 2).astype(np.float32)) for v in (VIDEO, other))
    with torch.no_grad():
        network = seeded(PictureNetwork)
        apart = network(x, return_features=True) - network(y, return_features=True)
    assert value.value == pytest.approx(float(apart.square().sum(1).mean()), rel=1e-4)
