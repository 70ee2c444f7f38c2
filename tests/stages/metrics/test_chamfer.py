from dataclasses import replace

import numpy as np
import pytest

from model.camera import Camera, canonical_camera, orbit
from stages.metrics import Evaluation, MultiView, bootstrap
from stages.metrics.chamfer import chamfer_median, compute, lower_median, resize
from stages.metrics.warping import lift


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


# --- scenes seen by real cameras ----------------------------------------------------------------------------

RAYS, BIN = 64, 1.05 / 47                                    # of the paper: 2.25 to 3.3 in 48 samples
FRONT, SIDE = canonical_camera(), orbit(30.0)


def sphere_seen(camera: Camera, radius: float, at: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(points [R, R, 3] of a sphere about (at, 0, 0), opacity [R, R]) where its rays meet it."""
    rays = (lift(camera, np.ones((RAYS, RAYS))) - camera.position).reshape(-1, 3)
    origin = camera.position - (at, 0, 0)
    half = rays @ origin
    square = half**2 - (origin @ origin - radius**2)
    depth = (-half - np.sqrt(np.clip(square, 0, None))).reshape(RAYS, RAYS)
    return lift(camera, depth).astype(np.float32), (square > 0).reshape(RAYS, RAYS).astype(np.float32)


def scene(seen: list[tuple[np.ndarray, np.ndarray]]) -> MultiView:
    points, opacity = (np.stack(part) for part in zip(*seen, strict=True))
    return MultiView(
        images=np.zeros((4, 8, 8, 3), np.uint8), depth=opacity, opacity=opacity, points=points,
        cameras=np.stack([c.encode() for c in (FRONT, SIDE, SIDE, FRONT)]), times=np.zeros(4, np.float32),
    )  # fmt: skip


def noise(side: int, opacity: np.ndarray | None = None, seed: int = 0) -> MultiView:
    """Four clouds of random points, half of the rays opaque unless told otherwise."""
    random = np.random.default_rng(seed)
    points = random.normal(0, 0.2, (4, side, side, 3)).astype(np.float32)
    if opacity is None:
        opacity = random.uniform(0, 1, (4, side, side)).astype(np.float32)
    return replace(scene([plane(0.0)] * 4), points=points, opacity=opacity)


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distance of each x to the nearest y, of all pairs."""
    return ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(axis=-1).min(axis=1)


def middle(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


@pytest.mark.parametrize("side", [16, 64])
def test_the_papers_distance_is_its_formula_on_clouds_of_64_by_64(side: int) -> None:
    torch = pytest.importorskip("torch")
    few = np.random.default_rng(1).uniform(0, 0.6, (4, side, side)).astype(np.float32)
    view = noise(side, few)
    channels = np.concatenate([view.points, view.opacity[..., None]], axis=-1).transpose(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(channels).double(), size=(64, 64), mode="bilinear", align_corners=False
    )
    clouds = [x[:, :3][x[:, 3] >= 0.5] / BIN for x in large.flatten(2).transpose(1, 2).numpy()]
    pairs = [(0, 2), (3, 1), (0, 1), (3, 2), (0, 3), (2, 1)]
    both_ways = [
        middle(nearest(clouds[a], clouds[b])) + middle(nearest(clouds[b], clouds[a])) for a, b in pairs
    ]
    assert chamfer(view) == pytest.approx(np.mean(both_ways), rel=1e-6)


def test_the_official_distance_is_the_authors_formula_and_its_interval_is_of_the_sum() -> None:
    views = [noise(24, seed=seed) for seed in range(3)]
    sums = []
    for view in views:
        clouds, kept = view.points.reshape(4, -1, 3), view.opacity.reshape(4, -1) > 0.5
        sums.append(sum(
            middle(nearest(clouds[a], clouds[b])[kept[a]]) + middle(nearest(clouds[b], clouds[a])[kept[b]])
            for a, b in ((0, 2), (3, 1), (0, 1), (3, 2))
        ))  # fmt: skip
    blind = noise(24, np.zeros((4, 24, 24), np.float32))
    value = compute(Evaluation(views=[*views, blind], mode="official"))["chamfer"]
    assert value.value == pytest.approx(sum(sums), rel=1e-9)
    assert (value.samples, value.direction) == (3, "lower")
    assert value.unit == "world units squared, summed over all pairs"
    low, high = bootstrap([*sums, 0.0])
    assert value.interval == pytest.approx((4 * low, 4 * high))


def test_a_ray_of_opacity_one_half_stays_in_the_paper_and_goes_in_the_authors_script() -> None:
    half = np.full((4, 8, 8), 0.5, np.float32)
    for mode, there in (("paper", True), ("official", False)):
        value = compute(Evaluation(views=[noise(8, half)], mode=mode))["chamfer"]
        assert (value.value is not None) == there
        slightly = compute(Evaluation(views=[noise(8, half + 0.1)], mode=mode))["chamfer"]
        assert slightly.value is not None


def test_pairs_of_a_view_without_an_opaque_ray_are_left_out() -> None:
    seen = np.ones((4, 64, 64), np.float32)
    seen[1] = 0
    apart = replace(noise(64), points=np.stack([plane(z, 64)[0] for z in (0.0, 9.0, BIN, 0.0)]), opacity=seen)
    # Of (0,2), (3,2) and (0,3) the last is of two equal clouds.
    assert chamfer(apart) == pytest.approx(2 * 2 / 3, rel=1e-4)


@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("name", ["points", "opacity"])
def test_views_that_are_not_finite_are_refused_by_name(mode: str, name: str) -> None:
    view = noise(8)
    getattr(view, name)[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=f"{name} hold numbers that are not finite"):
        compute(Evaluation(views=[view], mode=mode))
    three = replace(view, points=view.points[:2], opacity=view.opacity[:2])
    with pytest.raises(ValueError, match="points of 2 views"):
        compute(Evaluation(views=[three], mode=mode))


def chamfer(view: MultiView) -> float:
    value = compute(Evaluation(views=[view], bin_size=BIN))["chamfer"].value
    assert value is not None
    return value


def test_a_sphere_seen_from_two_sides_is_one_sphere_up_to_the_grid_of_rays() -> None:
    view = scene([sphere_seen(camera, 0.25) for camera in (FRONT, SIDE, SIDE, FRONT)])
    spacing = 2.7 / FRONT.intrinsics[0, 0] / RAYS            # of neighbouring rays, at the sphere
    assert chamfer(view) < 2 * (spacing / BIN) ** 2


def test_concentric_spheres_are_apart_by_twice_the_square_of_their_radii() -> None:
    """Every point of one is the difference of radii from the other, so the median is it too."""
    small, large = 0.2, 0.2 + 4 * BIN
    radii = (small, large, large, small)
    cameras = (FRONT, SIDE, SIDE, FRONT)
    view = scene([sphere_seen(camera, radius) for camera, radius in zip(cameras, radii, strict=True)])
    same = scene([sphere_seen(camera, small) for camera in (FRONT, SIDE, SIDE, FRONT)])
    own = chamfer(same)
    assert chamfer(view) == pytest.approx(4 / 6 * 2 * 4.0**2, rel=0.05, abs=own)


def test_a_plane_seen_by_a_moved_camera_is_the_same_plane() -> None:
    def seen(camera: Camera, z: float) -> tuple[np.ndarray, np.ndarray]:
        rays = lift(camera, np.ones((RAYS, RAYS))) - camera.position
        depth = (z - camera.position[2]) / rays[..., 2]
        return lift(camera, depth).astype(np.float32), np.ones((RAYS, RAYS), np.float32)

    together = scene([seen(FRONT, 0.0), seen(SIDE, 0.0), seen(SIDE, 0.0), seen(FRONT, 0.0)])
    spacing = 2.7 / FRONT.intrinsics[0, 0] / RAYS
    assert chamfer(together) < 2 * (spacing / BIN) ** 2
    apart = scene([seen(FRONT, 0.0), seen(SIDE, 3 * BIN), seen(SIDE, 3 * BIN), seen(FRONT, 0.0)])
    assert chamfer(apart) == pytest.approx(4 / 6 * 2 * 3.0**2, rel=0.05)
