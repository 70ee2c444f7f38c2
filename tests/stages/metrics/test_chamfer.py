import numpy as np
import pytest

from stages.metrics import Evaluation, MultiView
from stages.metrics.chamfer import chamfer_median, compute, lower_median, resize


def plane(z: float, side: int = 32, opacity: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(-0.4, 0.4, side), np.linspace(-0.4, 0.4, side))
    return np.stack([x, y, np.full_like(x, z)], -1).astype(np.float32), np.full(
        (side, side), opacity, np.float32
    )


def video(heights: list[float], opacity: float = 1.0) -> MultiView:
    points, opacities = zip(*(plane(z, opacity=opacity) for z in heights), strict=True)
    blank = np.zeros((4, 8, 8, 3), np.uint8)
    return MultiView(
        images=blank,
        depth=np.stack(opacities),
        opacity=np.stack(opacities),
        points=np.stack(points),
        cameras=np.zeros((4, 25), np.float32),
        times=np.zeros(4, np.float32),
    )


def test_views_of_one_surface_have_no_distance() -> None:
    value = compute(Evaluation(views=[video([0.1] * 4)], bin_size=0.02))["chamfer"]
    assert value.value == pytest.approx(0, abs=1e-9)
    assert value.samples == 1


def test_two_parallel_planes_are_twice_their_squared_distance_in_bins() -> None:
    apart, bin_size = 0.01, 0.02
    side_is_off = video([0.0, apart, apart, 0.0])  # the side views (1, 2) see the surface `apart` behind
    value = compute(Evaluation(views=[side_is_off], bin_size=bin_size))["chamfer"].value
    of_a_pair = 2 * (apart / bin_size) ** 2
    assert value == pytest.approx(of_a_pair * 4 / 6, rel=1e-5)  # four of the six pairs look from two sides


def test_the_official_mode_sums_over_front_side_pairs_in_world_units() -> None:
    apart = 0.01
    views = [video([0.0, apart, apart, 0.0])] * 3
    value = compute(Evaluation(views=views, bin_size=0.02, mode="official"))["chamfer"]
    assert value.value == pytest.approx(3 * 4 * 2 * apart**2, rel=1e-4)
    assert value.mode == "official"


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_a_transparent_cloud_gives_no_value_but_a_reason(mode: str) -> None:
    views = [video([0.0] * 4, opacity=0.2)]
    value = compute(Evaluation(views=views, bin_size=0.02, mode=mode))["chamfer"]
    assert value.value is None
    assert "no ray is opaque" in value.reason


def test_the_median_is_a_value_that_occurs() -> None:
    assert lower_median(np.array([4.0, 1.0, 3.0, 2.0])) == 2.0
    assert lower_median(np.array([3.0, 1.0, 2.0])) == 2.0


def test_an_empty_cloud_has_no_distance() -> None:
    assert np.isnan(chamfer_median(np.zeros((0, 3)), np.ones((4, 3))))


def test_resizing_keeps_a_linear_ramp_inside_the_picture() -> None:
    ramp = np.arange(16.0)[None, :, None].repeat(16, 0)
    out = resize(ramp, 32)[..., 0]
    expected = (np.arange(32) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(out[5, 1:-1], expected[1:-1], atol=1e-12)
