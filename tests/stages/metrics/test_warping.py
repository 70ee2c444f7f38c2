from dataclasses import replace

import numpy as np
import pytest

from model.camera import Camera, canonical_camera, orbit
from stages.metrics import Evaluation, MultiView
from stages.metrics.warping import compute, lift, official_warp, project, warping_error

SIZE = 64
FRONT, SIDE = canonical_camera(), orbit(30.0)


def rays(camera: Camera) -> np.ndarray:
    return (lift(camera, np.ones((SIZE, SIZE))) - camera.position).reshape(-1, 3)


def depth_of_plane(camera: Camera, z: float) -> np.ndarray:
    return ((z - camera.position[2]) / rays(camera)[:, 2]).reshape(SIZE, SIZE)


def depth_of_sphere(camera: Camera, radius: float) -> np.ndarray:
    """Distance to the sphere about the origin, to its silhouette's depth where the ray misses it."""
    half = rays(camera) @ camera.position
    root = np.clip(half**2 - (camera.position @ camera.position - radius**2), 0, None)
    return (-half - np.sqrt(root)).reshape(SIZE, SIZE)


def paint(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """A smooth texture fixed to the world, seen by `camera`."""
    x, y, z = np.moveaxis(lift(camera, depth), -1, 0)
    channels = [
        127 + 100 * np.sin(6 * x + 2 * z),
        127 + 100 * np.cos(5 * y),
        127 + 60 * np.sin(4 * (x + y) + 1),
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize("surface", [lambda c: depth_of_plane(c, 0.1), lambda c: depth_of_sphere(c, 0.6)])
def test_true_depth_of_a_painted_surface_has_almost_no_error(surface) -> None:
    depth = surface(SIDE)
    error = warping_error(
        FRONT.encode(), SIDE.encode(), paint(FRONT, surface(FRONT)), paint(SIDE, depth), depth
    )
    assert error < 0.5
    assert (
        warping_error(
            FRONT.encode(), SIDE.encode(), paint(FRONT, surface(FRONT)), paint(SIDE, depth), depth + 0.1
        )
        > 3
    )


def test_a_constant_difference_of_brightness_is_the_error() -> None:
    depth, dark = depth_of_plane(SIDE, 0.0), np.full((SIZE, SIZE, 3), 40.0)
    assert warping_error(FRONT.encode(), SIDE.encode(), dark + 25, dark, depth) == pytest.approx(25)


def test_no_pixel_in_view_has_no_error() -> None:
    behind = Camera(
        rotation=np.diag([-1.0, -1.0, 1.0]), position=np.array([0, 0, -2.7]), intrinsics=FRONT.intrinsics
    )
    near = np.full((SIZE, SIZE), 0.1)
    away = Camera(rotation=behind.rotation, position=np.array([0, 0, 9.0]), intrinsics=FRONT.intrinsics)
    assert np.isnan(
        warping_error(
            FRONT.encode(), away.encode(), np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE, 3)), near
        )
    )


def test_projection_undoes_lifting_also_with_skew() -> None:
    skewed = Camera(
        rotation=SIDE.rotation,
        position=SIDE.position,
        intrinsics=np.array([[4.2, 0.3, 0.48], [0, 4.4, 0.53], [0, 0, 1]]),
    )
    uv, in_front = project(skewed, lift(skewed, np.full((SIZE, SIZE), 2.5)))
    centre = (np.arange(SIZE) + 0.5) / SIZE
    np.testing.assert_allclose(uv, np.stack(np.meshgrid(centre, centre), -1), atol=1e-12)
    assert in_front.all()


def test_the_official_warp_of_one_camera_onto_itself_is_the_identity() -> None:
    depth, image = (
        depth_of_plane(FRONT, 0.0),
        np.random.default_rng(0).integers(1, 255, (SIZE, SIZE, 3)).astype(float),
    )
    warped, mask, error = official_warp(FRONT.encode(), FRONT.encode(), image, image, depth)
    assert mask.all()
    np.testing.assert_array_equal(warped, image)
    assert error == 0


def test_a_video_is_the_mean_of_its_front_side_pairs() -> None:
    cameras = [FRONT, SIDE, SIDE, FRONT]
    images = np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in (10, 20, 40, 80)])
    depth = np.stack([depth_of_plane(c, 0.0) for c in cameras]).astype(np.float32)
    view = MultiView(
        images=images,
        depth=depth,
        opacity=np.ones_like(depth),
        points=np.zeros((4, SIZE, SIZE, 3), np.float32),
        cameras=np.stack([c.encode() for c in cameras]),
        times=np.zeros(4, np.float32),
    )
    value = compute(Evaluation(views=[view], bin_size=1.0))["warping_error"]
    assert value.value == pytest.approx(np.mean([40 - 10, 80 - 20, 20 - 10, 80 - 40]))


def noise(front: Camera, side: Camera) -> MultiView:
    """Pictures of 512 px and depths of 64, all random, seen by these cameras."""
    random = np.random.default_rng(0)
    return MultiView(
        images=random.integers(0, 256, (4, 512, 512, 3)).astype(np.uint8),
        depth=random.uniform(2.4, 3.0, (4, 64, 64)).astype(np.float32),
        opacity=np.ones((4, 64, 64), np.float32), points=np.zeros((4, 64, 64, 3), np.float32),
        cameras=np.stack([c.encode() for c in (front, side, side, front)]), times=np.zeros(4, np.float32),
    )  # fmt: skip


def other_intrinsics(camera: Camera) -> Camera:
    """Not square, and off centre."""
    return replace(camera, intrinsics=np.array([[4.2, 0, 0.48], [0, 4.6, 0.53], [0, 0, 1]]))


def moved(view: MultiView, front: int, side: int, *, both: bool) -> np.ndarray:
    """[256, 256, 2]: where the pixels of one view come to lie in another, in sides, by 4 x 4 matrices."""
    torch = pytest.importorskip("torch")
    depth = torch.nn.functional.interpolate(
        torch.from_numpy(view.depth[side])[None, None].double(), size=(256, 256), mode="bilinear"
    )[0, 0].numpy()
    centre = (np.arange(256) + 0.5) / 256
    u, v = np.meshgrid(centre, centre)
    (to_world, k), (other, k_front) = (
        (c[:16].reshape(4, 4).astype(float), c[16:].reshape(3, 3).astype(float))
        for c in view.cameras[[side, front]]
    )
    ray = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(k).T
    local = ray / np.linalg.norm(ray, axis=-1, keepdims=True) * depth[..., None]
    world = np.concatenate([local, np.ones_like(local[..., :1])], -1) @ to_world.T
    x, y, z, _ = np.moveaxis(world @ np.linalg.inv(other).T, -1, 0)
    row = 0 if both else 1
    return np.stack([
        k_front[0, 0] * x / z + k_front[0, 2], k_front[row, row] * y / z + k_front[row, 2]
    ], -1)  # fmt: skip


PAIRS = ((0, 2), (3, 1), (0, 1), (3, 2))


def test_the_official_error_is_the_authors_formula_on_pictures_of_256_px() -> None:
    view = noise(*map(other_intrinsics, (FRONT, SIDE)))
    errors = []
    for front, side in PAIRS:
        pictures = [
            np.floor(view.images[i].reshape(256, 2, 256, 2, 3).mean(axis=(1, 3)) + 0.5) for i in (front, side)
        ]
        g = moved(view, front, side, both=True) * 2 - 1
        x, y = np.clip(np.trunc((g + 1) / 2 * 256), 0, 255).astype(int).reshape(-1, 2).T
        warped = np.full((256, 256, 3), np.nan)
        for at in range(256 * 256):
            warped[y[at], x[at]] = pictures[1][at // 256, at % 256]
        seen = ~np.isnan(warped[..., 0]) & (np.abs(g) <= 1).all(axis=-1)
        errors.append(np.abs(warped - pictures[0])[seen].mean())
    value = compute(Evaluation(views=[view], mode="official"))["warping_error"]
    assert value.value == pytest.approx(np.mean(errors), rel=1e-5)   # single precision moves a pixel or two
    assert (value.mode, value.unit, value.direction) == ("official", "grey levels of 255", "lower")


def test_the_papers_error_is_its_formula_on_pictures_of_256_px() -> None:
    torch = pytest.importorskip("torch")
    view = noise(*map(other_intrinsics, (FRONT, SIDE)))
    errors = []
    for front, side in PAIRS:
        pictures = [view.images[i].reshape(256, 2, 256, 2, 3).mean(axis=(1, 3)) for i in (front, side)]
        uv = moved(view, front, side, both=False)
        seen = ((uv >= 0) & (uv < 1)).all(axis=-1)
        grid = torch.from_numpy(uv[seen] * 2 - 1)[None, None]
        read = torch.nn.functional.grid_sample(
            torch.from_numpy(pictures[0].transpose(2, 0, 1))[None], grid, padding_mode="border",
            align_corners=False,
        )[0, :, 0].T.numpy()  # fmt: skip
        errors.append(np.abs(read - pictures[1][seen]).mean())
    value = compute(Evaluation(views=[view]))["warping_error"]
    assert value.value == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_a_depth_that_is_not_finite_is_refused(mode: str) -> None:
    view = noise(FRONT, SIDE)
    view.depth[1, 5, 5] = np.inf
    with pytest.raises(ValueError, match="depth hold numbers that are not finite"):
        compute(Evaluation(views=[view], mode=mode))


@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.2])
def test_a_moved_camera_has_the_slope_of_the_picture_times_what_it_is_wrong_by(wrong: float) -> None:
    """A plane whose brightness rises by `slope` per world unit, seen from the front and from beside it; the
    second picture is painted as if the plane had moved along by `wrong`."""
    slope, aside = 150.0, np.array([0.1, 0.05, 0])
    moved = Camera(
        rotation=FRONT.rotation, position=FRONT.position + aside, intrinsics=FRONT.intrinsics
    )

    def ramp(camera: Camera, by: float = 0.0) -> np.ndarray:
        x = lift(camera, depth_of_plane(camera, 0.0))[..., 0]
        return np.repeat((127 + slope * (x + by))[..., None], 3, axis=-1)

    depth = depth_of_plane(moved, 0.0)
    error = warping_error(FRONT.encode(), moved.encode(), ramp(FRONT), ramp(moved, wrong), depth)
    assert error == pytest.approx(slope * wrong, abs=0.05)  # the edge's pixels are repeated
